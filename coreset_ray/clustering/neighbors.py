"""The k rows most similar to each by cosine: found by FAISS, then measured exactly.

n rows of a shard, q queries, m dimensions. FAISS computes in blocks whose shape moves last digits,
so it is only asked who may be near; similarities are float64 sums in the order of the dimensions,
and depend on the two rows alone.
"""

from typing import Any, Literal

import faiss
import numba
import numpy as np

Kind = Literal["flat", "ivf", "ivfpq"]

MARGIN = 16  # candidates more than asked for, so that last digits decide nothing
_TRAINING = 64  # rows a list that an inverted file is trained on
_LEAST = 39  # rows a list, or a code, below which FAISS warns
_CODE = 32  # bytes of a row in a product quantiser, at most
_BITS = 8
_REFINED = 4  # candidates for each neighbour where rows are compressed


def single_thread() -> None:
    """Has FAISS compute for the calling thread in that thread alone: how threads share a sum moves
    digits."""
    faiss.omp_set_num_threads(1)


class Neighbors:
    """Rows that can be searched, (n, m) float32 of length 1.

    kind: `flat` looks at every row; `ivf` and `ivfpq` at those of the `probes` nearest of `lists`
    clusters, the latter by compressed rows of at most 32 bytes. gpu: on the first GPU in sight.
    """

    def __init__(
        self, rows: np.ndarray, kind: Kind, *, lists: int = 1, probes: int = 1, gpu: bool = False
    ):
        self.rows, self.gpu = rows, gpu
        self.factor = _REFINED if kind == "ivfpq" else 1
        self.index = None if kind == "flat" else _trained(rows, kind, lists, probes)
        if gpu:
            self.resources = faiss.StandardGpuResources()
            if self.index is not None:
                self.index = faiss.index_cpu_to_gpu(self.resources, 0, self.index)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Candidates for the k rows most similar to each query, and a few more.

        queries: (q, m) float32 of length 1. Returns places (q, c) int64, -1 where there are
        fewer, and similarities (q, c) float64, -inf there; in no order.
        """
        if self.index is None:
            return self.search_all(queries, k)
        count = min(len(self.rows), k * self.factor + MARGIN)
        return self._measured(queries, self.index.search(np.ascontiguousarray(queries), count)[1])

    def search_all(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The same by looking at every row, whatever the kind."""
        count = min(len(self.rows), k + MARGIN)
        given = np.ascontiguousarray(queries), self.rows, count
        metric = faiss.METRIC_INNER_PRODUCT
        if self.gpu:
            return self._measured(queries, faiss.knn_gpu(self.resources, *given, metric=metric)[1])
        return self._measured(queries, faiss.knn(*given, metric=metric)[1])

    def _measured(self, queries: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        similarity = np.empty(places.shape)
        _measure(queries, self.rows, places, similarity)
        return places, similarity


def _trained(rows: np.ndarray, kind: Kind, lists: int, probes: int) -> Any:
    """An inverted file that holds the rows; trained on some at equal distances."""
    m = rows.shape[1]
    lists = max(1, min(lists, len(rows) // _LEAST))
    parts = max(p for p in range(1, min(m, _CODE) + 1) if m % p == 0)
    stored = "Flat" if kind == "ivf" else f"PQ{parts}x{_BITS}np"
    index: Any = faiss.index_factory(m, f"IVF{lists},{stored}", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(lists, probes)
    wanted = max(_TRAINING * lists, _LEAST << _BITS)
    some = np.linspace(0, len(rows) - 1, min(len(rows), wanted)).astype(np.int64)
    index.train(rows[some])
    index.add(rows)
    return index


@numba.njit(nogil=True, cache=True)
def _measure(queries, rows, places, similarity):
    """Four candidates at a time, as each sum has to wait for its own last addition."""
    last = places.shape[1] - 1
    for i in range(len(queries)):
        query, place, out = queries[i], places[i], similarity[i]
        for c in range(0, last + 1, 4):
            d, e, f = min(c + 1, last), min(c + 2, last), min(c + 3, last)
            p, q, r, s = rows[place[c]], rows[place[d]], rows[place[e]], rows[place[f]]
            a, b, g, h = 0.0, 0.0, 0.0, 0.0
            for j in range(len(query)):
                x = np.float64(query[j])
                a += x * np.float64(p[j])
                b += x * np.float64(q[j])
                g += x * np.float64(r[j])
                h += x * np.float64(s[j])
            out[c], out[d], out[e], out[f] = a, b, g, h
        out[place < 0] = -np.inf  # whose sums were with the last row


def best(
    similarity: np.ndarray, row: np.ndarray, uid: np.ndarray, own: np.ndarray, k: int
) -> np.ndarray:
    """Places of the k most similar candidates, (q, k) int64: best first, ties to the smallest
    uid. A row is no candidate for itself.

    similarity: (q, c) float64, -inf where there is no candidate; row: (q, c) int64, numbers of
    rows in the pool; uid: (q, c, 2) uint64; own: (q,) the queries' row numbers.
    """
    score = np.where(row == own[:, None], -np.inf, similarity)
    return np.lexsort((uid[..., 1], uid[..., 0], -score), axis=-1)[:, :k]


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of true neighbours that were found; both (q, k) row numbers."""
    return float((truth[:, :, None] == found[:, None, :]).any(axis=2).mean())


def choose_kind(n: int) -> Kind:
    """Every row against every other while that is a matter of minutes on a node or a GPU; where
    rows are many, an inverted file's copy of them is compressed. By n alone: the hardware of the
    day may not change what is found."""
    if n <= 500_000:
        return "flat"
    return "ivf" if n <= 50_000_000 else "ivfpq"
