"""Similarity of rows to clients, those that they may serve, without ever holding all of it:
n rows, c clients, m dimensions, q queries."""

from collections.abc import Callable
from typing import Literal, Protocol

import numba
import numpy as np
from scipy.sparse import csr_array

from coreset_ray.core.directions import Directions, OfGradients, Similarity
from coreset_ray.core.exact import dots
from coreset_ray.core.pool import Pool

KernelName = Literal["neighbors", "dense"]
_BLOCK = 64 << 20  # bytes of similarities at a time
_HELD = 512 << 20  # bytes of similarities that are kept where all take no more
_TILE = 4096  # rows met with a block of queries at a time


class Kernel(Protocol):
    """Similarities from 0 to 1 of n rows to c clients."""

    clients: int

    def excess(self, rows: np.ndarray, level: np.ndarray, cap: np.ndarray) -> np.ndarray:
        """Σ_i max(min(s_ij, cap_i) - level_i, 0) for each row j, over clients i; (r,) float64."""
        ...

    def lift(self, row: int, level: np.ndarray, cap: np.ndarray) -> None:
        """level_i ← max(level_i, min(s_ij, cap_i)) in place for the row j."""
        ...


class Sparse:
    """The similarities that are above 0, row by row.

    start: (n + 1,) int64; client, similarity: those of row j from start[j] to start[j + 1], in
    ascending order of clients.
    """

    def __init__(
        self, start: np.ndarray, client: np.ndarray, similarity: np.ndarray, clients: int
    ) -> None:
        self.start, self.client, self.similarity = start, client, similarity
        self.clients = clients

    def excess(self, rows: np.ndarray, level: np.ndarray, cap: np.ndarray) -> np.ndarray:
        return _excess(self.start, self.client, self.similarity, level, cap, rows)

    def lift(self, row: int, level: np.ndarray, cap: np.ndarray) -> None:
        client, similarity = self.of(row)
        level[client] = np.maximum(level[client], np.minimum(similarity, cap[client]))

    def of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A row's clients and its similarities to them."""
        here = slice(self.start[row], self.start[row + 1])
        return self.client[here], self.similarity[here].astype(np.float64)

    def sums(self) -> np.ndarray:
        """Of each row over all clients, (n,) float64."""
        rows = np.arange(len(self.start) - 1)
        everything = np.full(self.clients, np.inf)
        return self.excess(rows, np.zeros(self.clients), everything)


class Dense:
    """All cosines of a pool's rows, those below 0 as 0: of a small pool once, else when asked for.

    Each is the same whatever the block; a row is similar to itself by 1.
    """

    def __init__(self, of: Directions) -> None:
        self.of, self.clients = of, len(of)
        self.held = None
        if 8 * self.clients**2 <= _HELD:
            self.held = self._columns(np.arange(self.clients))

    def excess(self, rows: np.ndarray, level: np.ndarray, cap: np.ndarray) -> np.ndarray:
        step = max(1, _BLOCK // (8 * self.clients))
        found = [np.empty(0)]
        for first in range(0, len(rows), step):
            block = self._columns(rows[first : first + step])
            found.append(_column_excess(block, level, cap))
        return np.concatenate(found)

    def lift(self, row: int, level: np.ndarray, cap: np.ndarray) -> None:
        column = self._columns(np.array([row]))[:, 0]
        np.maximum(level, np.minimum(column, cap), out=level)

    def _columns(self, rows: np.ndarray) -> np.ndarray:
        if self.held is not None:
            return self.held[:, rows]
        block = self.of.cosines(slice(None), rows)
        block[rows, np.arange(len(rows))] = 1
        return block


def neighbor_kernel(pool: Pool, similarity: Similarity, neighbors: int) -> Sparse:
    """Each row with the nearest `neighbors` and with those it is near to, by cosine; 1 with itself.

    Of embeddings those of the signal; of gradients they are found here, O(n²·(c + h)).
    O(n·neighbors) in memory.
    """
    if similarity == "gradients":
        return _both_ways(*nearest_rows(OfGradients(pool), neighbors))
    told = pool["knn.neighbor"], pool["knn.similarity"]
    return _both_ways(*(column[:, :neighbors] for column in told))


def nearest_rows(of: Directions, neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """The others that are most similar to each row, of those above 0, nearest first and equals in
    their order: (n, neighbors) int64, -1 where there are fewer, and (n, neighbors) float64."""

    def cosines(some: slice, others: slice) -> np.ndarray:
        block = of.cosines(some, others)
        own = np.arange(max(some.start, others.start), min(some.stop, others.stop))
        block[own - some.start, own - others.start] = -1
        return block

    return _best(cosines, len(of), len(of), min(neighbors, max(1, len(of) - 1)))


def _both_ways(neighbor: np.ndarray, similarity: np.ndarray) -> Sparse:
    """Similarity of a row and a neighbour of it, whichever names the other; of itself 1."""
    n, own = len(neighbor), np.arange(len(neighbor), dtype=np.int32)[:, None]
    client = np.concatenate([own, neighbor.astype(np.int32)], axis=1)
    value = np.concatenate([np.ones((n, 1), np.float32), np.clip(similarity, 0, 1)], axis=1)
    here = (client >= 0) & (value > 0)
    here[:, 1:] &= client[:, 1:] != own
    start = np.concatenate([[0], np.cumsum(here.sum(axis=1))])
    near = csr_array((value[here], client[here], start), shape=(n, n))
    del client, value, here  # this is where a pool's choice takes most memory
    near.sort_indices()
    return _sparse(csr_array(near.maximum(csr_array(near.T))), n)


def nearest_query(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """max_j max(s_ij, 0) over queries j for each row i, both of `grid_rows`: (n,) float64."""
    best = np.zeros(len(rows))
    for first, last in _spans(len(queries), 1024):
        for a, b in _spans(len(rows), _TILE):
            near = dots(rows[a:b], queries[first:last]).max(axis=1)
            np.maximum(best[a:b], near, out=best[a:b])
    return best


def query_kernel(rows: np.ndarray, queries: np.ndarray, neighbors: int) -> Sparse:
    """Queries as clients: each with the nearest `neighbors` of the rows; equals go to the first.

    rows, queries: of `grid_rows`. O(q·neighbors) in memory.
    """

    def cosines(some: slice, others: slice) -> np.ndarray:
        return dots(queries[some], rows[others])

    row, similarity = _best(cosines, len(queries), len(rows), min(neighbors, len(rows)))
    query = np.repeat(np.arange(len(queries)), row.shape[1]).reshape(row.shape)
    here = row >= 0
    shape = (len(rows), len(queries))
    return _sparse(
        csr_array((similarity[here], (row[here], query[here])), shape=shape), len(queries)
    )


def _best(
    cosines: Callable[[slice, slice], np.ndarray], queries: int, rows: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows most similar to each query, and how similar: see `nearest_rows`."""
    row = np.full((queries, count), -1, np.int64)
    similarity = np.zeros((queries, count))
    for first, last in _spans(queries, 1024):
        some = slice(first, last)
        for a, b in _spans(rows, _TILE):
            _keep_best(cosines(some, slice(a, b)), a, similarity[some], row[some])
    return row, similarity


def _sparse(found: csr_array, clients: int) -> Sparse:
    found.sort_indices()
    return Sparse(found.indptr.astype(np.int64), found.indices, found.data, clients)


def _spans(count: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, count)) for first in range(0, count, step)]


@numba.njit(nogil=True, cache=True)
def _excess(start, client, similarity, level, cap, rows):
    found = np.empty(len(rows))
    for r in range(len(rows)):
        total = 0.0
        for e in range(start[rows[r]], start[rows[r] + 1]):
            i = client[e]
            more = min(np.float64(similarity[e]), cap[i]) - level[i]
            if more > 0:
                total += more
        found[r] = total
    return found


@numba.njit(nogil=True, cache=True)
def _column_excess(block, level, cap):
    found = np.zeros(block.shape[1])
    for i in range(len(block)):
        for j in range(block.shape[1]):
            more = min(block[i, j], cap[i]) - level[i]
            if more > 0:
                found[j] += more
    return found


@numba.njit(nogil=True, cache=True)
def _keep_best(block, first, similarity, row):
    """Merges a block of queries × rows into each query's best, in descending order."""
    last = similarity.shape[1] - 1
    for q in range(len(block)):
        for i in range(block.shape[1]):
            value, place = block[q, i], last
            if value <= similarity[q, last]:
                continue
            while place > 0 and similarity[q, place - 1] < value:
                similarity[q, place] = similarity[q, place - 1]
                row[q, place] = row[q, place - 1]
                place -= 1
            similarity[q, place] = value
            row[q, place] = first + i
