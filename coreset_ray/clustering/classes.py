"""How many classes a pool may have, where nobody knows: a proposal with its evidence.

The eigengap heuristic (von Luxburg 2007, section 8.3): rows are joined by how many of their nearest
neighbours they share; the normalised Laplacian of a graph of c well separated groups has c
eigenvalues near 0 and a gap after the c-th. Beside it, whether k-means on two halves of the sample
agrees. Where groups overlap no gap stands out, and the proposal says so.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from sklearn.metrics import adjusted_rand_score

from coreset_ray.clustering.kmeans import Nearest
from coreset_ray.clustering.kmeans_fit import Clustering, find_here
from coreset_ray.core.cosine import unit_rows

_K = 20  # neighbours
_DENSE = 500  # rows of a graph that is decomposed whole
_SHOWN = 8  # candidates that k-means is tried with
_STANDS_OUT = 1.5
_AGREED = 0.5


@dataclass(frozen=True)
class Proposal:
    """classes: proposed; strength: its gap over the next largest; evidence: of each candidate its
    gap, and of the first few `agreement`: the adjusted Rand index, over all rows of the sample, of
    k-means fitted on either half. In descending order of the gap."""

    classes: int
    strength: float
    evidence: list[dict[str, Any]]

    @property
    def stands_out(self) -> bool:
        """Whether the next best is far behind and halves agree; if not, the sample shows no number
        of classes."""
        return self.strength >= _STANDS_OUT and self.evidence[0]["agreement"] >= _AGREED


def propose(rows: np.ndarray, *, most: int = 100, seed: int = 0) -> Proposal:
    """A number of classes from 2 to `most`, or to a tenth of the rows where these are few.

    rows: (n, m) float32, a sample of a pool as k-means sees it, in random order, none twice. Cost:
    O(n² m) for the graph; 20,000 rows of 1,280 dimensions take about a minute on one core.
    Raises `ValueError` below 100 rows.
    """
    if len(rows) < 100:
        raise ValueError(
            f"classes=auto: {len(rows)} images that differ are too few to tell how many classes "
            "there are: at least 100 are needed; set the number yourself"
        )
    gaps = np.maximum(np.round(_gaps(rows, min(most, len(rows) // 10)), 4), 0)  # the rest is noise
    order = np.argsort(-gaps, kind="stable")
    evidence: list[dict[str, Any]] = [{"classes": int(c) + 2, "gap": float(gaps[c])} for c in order]
    for line in evidence[:_SHOWN]:
        line["agreement"] = round(_agreement(rows[::2], rows[1::2], line["classes"], seed), 3)
    first, second = np.maximum(gaps[order[:2]], 1e-4)
    return Proposal(evidence[0]["classes"], round(float(first / second), 2), evidence)


def _gaps(rows: np.ndarray, most: int) -> np.ndarray:
    """Between eigenvalues c and c + 1 of the graph's Laplacian, for c from 2 to `most`."""
    graph = _graph(unit_rows(rows))
    pieces, piece = connected_components(graph, directed=False)
    members = [np.flatnonzero(piece == p) for p in range(pieces)]
    tall = np.concatenate([_tallest(graph[some][:, some], most + 1) for some in members])
    return -np.diff(np.sort(tall)[::-1][: most + 1])[1:]


def _tallest(graph: Any, count: int) -> np.ndarray:
    """The largest eigenvalues of a connected graph, in no order, its edges scaled by the degrees of
    their ends: 1 minus the Laplacian's. Piece by piece, as iterations miss some of many alike."""
    scale = sparse.diags(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1) ** -0.5)
    scaled, n = scale @ graph @ scale, graph.shape[0]
    if n <= _DENSE:
        return np.linalg.eigvalsh(scaled.toarray())[-count:]
    start = np.random.Generator(np.random.Philox(key=0)).standard_normal(n)
    told: dict[str, Any] = {"which": "LA", "v0": start, "ncv": 2 * count + 20, "tol": 1e-3}
    return np.asarray(eigsh(scaled, count, return_eigenvectors=False, **told))


def _graph(unit: np.ndarray) -> Any:
    """(n, n) with n·k entries at most twice: how many of their k nearest neighbours two rows
    share, where one is a neighbour of the other."""
    n, k = len(unit), min(_K, len(unit) - 1)
    found = faiss.knn(unit, unit, k + 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
    own = found == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True  # a row that is not among its own nearest
    column = found[~own]
    near = sparse.csr_matrix((np.ones(n * k), column, np.arange(0, n * k + 1, k)), shape=(n, n))
    return (near @ near.T).multiply((near + near.T) > 0).tocsr()


def _agreement(one: np.ndarray, other: np.ndarray, classes: int, seed: int) -> float:
    """Of the clusters of all rows by k-means on one half and on the other."""
    sample, found = np.concatenate([one, other]), []
    wanted = Clustering(classes, spherical=False, standardize=False, seed=seed)
    for half in (one, other):
        uid = np.stack([np.zeros(len(half)), np.arange(len(half))], axis=1).astype(np.uint64)
        centers = find_here(uid, half, wanted)[0].centers
        found.append(Nearest(centers.value, centers.group).assign(sample, np.zeros(len(sample)))[0])
    return float(adjusted_rand_score(*found))
