"""What is done by us and by peers alike, for `peers.py`: how each side does it, and what its choice
is worth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from methods import read
from scipy.sparse import csr_matrix

from coreset_ray import catalog
from coreset_ray.core.alone import select_alone
from coreset_ray.core.directions import OfEmbeddings
from coreset_ray.core.maximize import maximize
from coreset_ray.core.pool import Pool, pool_of
from coreset_ray.core.similarity import Dense, Sparse, nearest_rows, neighbor_kernel
from coreset_ray.core.submodular import FacilityLocation
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import matrix, read_table

_NEIGHBORS = 50
_PROXY = ("proxy.probability", "proxy.feature", "proxy.label")

Chosen = tuple[np.ndarray, np.ndarray | None]  # rows, and how much each counts


@dataclass(frozen=True)
class Work:
    """given: what a side starts from, made of a pool outside its time; sides: (given, k) → rows;
    worth: of rows of the pool."""

    sides: Mapping[str, Callable[[Any, int], Chosen]]
    worth: Callable[[Pool, Chosen], float]
    given: Callable[[Pool], Any] = lambda pool: pool
    needs: tuple[str, ...] = ("embedding",)


def rows_of(workspace: str, n: int, needs: tuple[str, ...]) -> Pool:
    """Embeddings of length 1, as ours compares them, or what a classifier says."""
    if needs != ("embedding",):
        return read(workspace, needs).take(np.arange(n))
    (table,) = (Path(workspace) / "embeddings").glob("*/parts")
    blocks: list[np.ndarray] = []
    for part in sorted(table.glob("*.parquet")):
        if sum(map(len, blocks)) < n:
            blocks.append(matrix(read_table(locate(str(part)), ["embedding"])["embedding"]))
    rows = np.concatenate(blocks)[:n].astype(np.float64)
    return pool_of((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def ours(name: str, **params: Any) -> Callable[[Pool, int], Chosen]:
    """Over classes where the pool has them."""
    method: Any = catalog.build_selector(name, params)

    def choose(pool: Pool, k: int) -> Chosen:
        group = pool["proxy.label"] if "proxy.label" in pool.columns else None
        found = select_alone(method, pool, k, 0, group=group)
        return found.rows, found.weights

    return choose


# ---- submodular functions ----------------------------------------------------------------------


def cosines(pool: Pool) -> np.ndarray:
    unit = pool["embedding"].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def apricot(kind: str, similarity: Callable[[Any], Any], **told: Any) -> Any:
    def choose(given: Any, k: int) -> Chosen:
        made = getattr(import_module("apricot"), kind)
        of = made(k, "precomputed", optimizer="lazy", **told)
        return of.fit(similarity(given)).ranking, None

    return choose


def submodlib(kind: str, similarity: Callable[[Any], Any], name: str = "sijs", **told: Any) -> Any:
    def choose(given: Pool, k: int) -> Chosen:
        made = getattr(import_module("submodlib"), kind)
        of = made(n=len(given), mode="dense", **{name: similarity(given)}, **told)
        found = of.maximize(k, optimizer="LazyGreedy", show_progress=False)
        return np.array([row for row, _ in found]), None

    return choose


def nearest(pool: Pool) -> Sparse:
    near, similarity = nearest_rows(OfEmbeddings(pool["embedding"]), _NEIGHBORS)
    told = {"knn.neighbor": near, "knn.similarity": similarity.astype(np.float32)}
    return neighbor_kernel(Pool(pool.uid, told), "embeddings", _NEIGHBORS)


def as_csr(kernel: Sparse) -> csr_matrix:
    told = (kernel.similarity.astype(np.float64), kernel.client, kernel.start)
    return csr_matrix(told, shape=(kernel.clients, kernel.clients))


def ours_sparse(kernel: Sparse, k: int) -> Chosen:
    return maximize(FacilityLocation(kernel), np.arange(kernel.clients), k, "lazy").rows, None


def represented(pool: Pool, chosen: Chosen) -> float:
    """Σ_i max_{j ∈ S} max(cos_ij, 0)."""
    return FacilityLocation(Dense(OfEmbeddings(pool["embedding"]))).after(chosen[0]).value()


def halves(pool: Pool) -> np.ndarray:
    return (1 + cosines(pool)) / 2


def cut(pool: Pool, chosen: Chosen) -> float:
    """Σ_{i ∈ V} Σ_{j ∈ S} s_ij - ½ Σ_{i, j ∈ S} s_ij, s = (1 + cos) / 2."""
    s = halves(pool)[:, chosen[0]]
    return float(s.sum() - s[chosen[0]].sum() / 2)


def spanned(pool: Pool, chosen: Chosen) -> float:
    """log det(I + X_S X_Sᵀ)."""
    s = cosines(pool)[np.ix_(chosen[0], chosen[0])]
    return float(np.linalg.slogdet(np.eye(len(s)) + s)[1])


# ---- DeepCore ----------------------------------------------------------------------------------


def deepcore(name: str) -> Any:
    return import_module(f"deepcore.methods.{name}")


def theirs_k_center(pool: Pool, k: int) -> Chosen:
    distance = deepcore("methods_utils").euclidean_dist
    told = {"metric": distance, "device": "cpu", "random_seed": 0, "print_freq": 1 << 30}
    told["already_selected"] = []
    return deepcore("kcentergreedy").k_center_greedy(pool["embedding"].copy(), k, **told), None


def theirs_herding(pool: Pool, k: int) -> Chosen:
    of = _without_data("herding", "Herding")
    of.metric = deepcore("methods_utils").euclidean_dist
    return of.herding(torch.tensor(pool["embedding"]), k), None


def radius(pool: Pool, chosen: Chosen) -> float:
    """The largest distance of a row to the nearest chosen one."""
    z = torch.tensor(pool["embedding"]).double()
    return float(torch.cdist(z, z[chosen[0]]).min(dim=1).values.max())


def mean_error(pool: Pool, chosen: Chosen) -> float:
    """‖mean of the chosen - mean of all‖."""
    z = pool["embedding"].astype(np.float64)
    return float(np.linalg.norm(z[chosen[0]].mean(axis=0) - z.mean(axis=0)))


def gradients(pool: Pool) -> np.ndarray:
    """(n, c·(h + 1)), whole, as DeepCore holds them: of the bias first."""
    residual = pool["proxy.probability"].copy()
    residual[np.arange(len(pool)), pool["proxy.label"]] -= 1
    weights = residual[:, :, None] * pool["proxy.feature"][:, None, :]
    return np.concatenate([residual, weights.reshape(len(pool), -1)], axis=1)


def of_classes(pool: Pool, k: int) -> list[tuple[np.ndarray, int]]:
    """Rows of each class and its share of k."""
    values = np.unique(pool["proxy.label"])
    share = [k // len(values) + (i < k % len(values)) for i in range(len(values))]
    rows = [np.flatnonzero(pool["proxy.label"] == value) for value in values]
    return list(zip(rows, share, strict=True))


def theirs_craig(pool: Pool, k: int) -> Chosen:
    of = _without_data("craig", "Craig")
    tools, found = deepcore("methods_utils"), []
    for rows, share in of_classes(pool, k):
        matrix = -1.0 * deepcore("craig").euclidean_dist_pair_np(gradients(pool.take(rows)))
        matrix -= np.min(matrix) - 1e-3
        function = tools.FacilityLocation(index=rows, similarity_matrix=matrix)
        greedy = tools.submodular_optimizer.LazyGreedy(args=of.args, index=rows, budget=share)
        found.append(greedy.select(function.calc_gain, update_state=function.update_state))
    return np.concatenate(found), None


def theirs_gradmatch(pool: Pool, k: int) -> Chosen:
    of, found, weights = _without_data("gradmatch", "GradMatch"), [], []
    for rows, share in of_classes(pool, k):
        g = gradients(pool.take(rows))
        weight = of.orthogonal_matching_pursuit_np(g.T, g.mean(axis=0), share)
        found.append(rows[weight > 0])
        weights.append(weight[weight > 0] * len(rows))
    return np.concatenate(found), np.concatenate(weights)


def medoid_distance(pool: Pool, chosen: Chosen) -> float:
    """The mean distance of a row's gradient to the nearest chosen one of its label."""
    g = torch.tensor(gradients(pool)).double()
    total = 0.0
    for rows, _ in of_classes(pool, 0):
        own = np.intersect1d(rows, chosen[0])
        total += float(torch.cdist(g[rows], g[own]).min(dim=1).values.sum())
    return total / len(pool)


def mismatch(pool: Pool, chosen: Chosen) -> float:
    """Σ over classes of ‖mean gradient - Σ_j w_j g_j‖² + ‖w‖²."""
    g, weight = gradients(pool).astype(np.float64), np.zeros(len(pool))
    weight[chosen[0]] = chosen[1]
    total = 0.0
    for rows, _ in of_classes(pool, 0):
        w = weight[rows] / len(rows)
        total += float(np.square(g[rows].mean(axis=0) - w @ g[rows]).sum() + np.square(w).sum())
    return total


def _without_data(module: str, name: str) -> Any:
    kind = getattr(deepcore(module), name)
    of = kind.__new__(kind)
    of.args = SimpleNamespace(print_freq=1 << 30)
    return of


WORKS = {
    "facility location, all pairs": Work(
        {
            "ours": ours("facility_location", kernel="dense"),
            "apricot": apricot(
                "FacilityLocationSelection", lambda pool: np.maximum(cosines(pool), 0)
            ),
            "submodlib": submodlib(
                "FacilityLocationFunction",
                lambda pool: np.maximum(cosines(pool), 0),
                separate_rep=False,
            ),
        },
        represented,
    ),
    "facility location, given neighbours": Work(
        {"ours": ours_sparse, "apricot": apricot("FacilityLocationSelection", as_csr)},
        represented,
        nearest,
    ),
    "graph cut": Work(
        {
            "ours": ours("graph_cut", kernel="dense"),
            "apricot": apricot("GraphCutSelection", halves, alpha=2),
            "submodlib": submodlib("GraphCutFunction", halves, "ggsijs", lambdaVal=0.5),
        },
        cut,
    ),
    "log-determinant": Work(
        {
            "ours": ours("log_determinant"),
            "submodlib": submodlib("LogDeterminantFunction", cosines, lambdaVal=1),
        },
        spanned,
    ),
    "k-center greedy": Work({"ours": ours("k_center"), "DeepCore": theirs_k_center}, radius),
    "herding": Work({"ours": ours("herding"), "DeepCore": theirs_herding}, mean_error),
    "craig": Work(
        {"ours": ours("craig", neighbors=1 << 20), "DeepCore": theirs_craig},
        medoid_distance,
        needs=_PROXY,
    ),
    "gradmatch": Work(
        {"ours": ours("gradmatch"), "DeepCore": theirs_gradmatch}, mismatch, needs=_PROXY
    ),
}
