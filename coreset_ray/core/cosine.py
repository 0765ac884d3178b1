"""The rows nearest by cosine, and cosines that depend on the two rows alone.

A float32 product of every query with every row tells who may be near: for rows of length 1 and m
dimensions it is off by at most (m + 8)·2⁻²⁴, in whatever order it was summed (Higham, Accuracy and
Stability of Numerical Algorithms, Eq. 3.5, and the rounding of the rows). Whoever lies within
twice that of the k-th best is measured in float64, in the order of the dimensions, so no block and
no thread decides anything. A row of zeros has cosine 0 with every row.
"""

from collections.abc import Iterator

import numba
import numpy as np

_PRODUCTS = 1 << 22  # taken at once


def unit_rows(embedding: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, (n, m) float32; rows of zeros stay as they are."""
    out = np.empty(embedding.shape, np.float32)
    _scale(np.ascontiguousarray(embedding, np.float32), out)
    return out


def largest_cosine(queries: np.ndarray, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of each query with a row other than itself, (q,) float64; -inf where there is none.

    queries: (q, m) and rows: (r, m), float32 of length 1 or 0; own: (q,) int64, the place of the
    query among the rows, -1 where it is none of them. O(q r m).
    """
    best = np.full(len(queries), -np.inf)
    for query, row in _candidates(queries, rows, 1, own):
        _largest(queries, rows, query, row, best)
    return best


def nearest_rows(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of the largest cosine with each query, best first, ties to the first row: places
    (q, k) int64 and cosines (q, k) float64. queries, rows: as above, k rows at least."""
    places, cosines, none = [], [], np.full(len(queries), -1)
    for query, row in _candidates(queries, rows, k, none):
        cosine = np.empty(len(query))
        _measure(queries, rows, query, row, cosine)
        order = np.lexsort((row, -cosine, query))
        first = np.flatnonzero(np.diff(query, prepend=-1))  # a query's candidates are consecutive
        taken = order[first[:, None] + np.arange(k)]
        places.append(row[taken])
        cosines.append(cosine[taken])
    return np.concatenate(places), np.concatenate(cosines)


def _candidates(
    queries: np.ndarray, rows: np.ndarray, k: int, own: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (query, row), each (p,) int64 in the order of queries, that hold the k best rows of
    every query, own rows apart; a block of queries at a time."""
    slack = np.float32(2 * (rows.shape[1] + 8) * 2.0**-24)
    each = max(1, _PRODUCTS // len(rows))
    for start in range(0, len(queries), each):
        product = queries[start : start + each] @ rows.T
        mine = own[start : start + each]
        itself = np.flatnonzero(mine >= 0)
        product[itself, mine[itself]] = -np.inf
        kth = product.max(axis=1) if k == 1 else np.partition(product, -k, axis=1)[:, -k]
        query, row = np.nonzero(product >= (kth - slack)[:, None])
        query += start
        other = row != own[query]
        yield query[other], row[other]


@numba.njit(nogil=True, cache=True)
def _scale(rows, out):
    for i in range(len(rows)):
        total = 0.0
        for x in rows[i]:
            total += np.float64(x) * np.float64(x)
        length = np.sqrt(total) if total > 0 else 1.0
        for j in range(rows.shape[1]):
            out[i, j] = rows[i, j] / length


@numba.njit(nogil=True, cache=True)
def _cosine(a, b):
    """Exactly 1 for equal rows."""
    product, first, second = 0.0, 0.0, 0.0
    for j in range(len(a)):
        x, y = np.float64(a[j]), np.float64(b[j])
        product += x * y
        first += x * x
        second += y * y
    if first == 0 or second == 0:
        return 0.0
    return min(1.0, max(-1.0, product / np.sqrt(first * second)))


@numba.njit(nogil=True, cache=True)
def _measure(queries, rows, query, row, cosine):
    for p in range(len(query)):
        cosine[p] = _cosine(queries[query[p]], rows[row[p]])


@numba.njit(nogil=True, cache=True)
def _largest(queries, rows, query, row, best):
    for p in range(len(query)):
        if best[query[p]] < 1.0:  # beside many copies of one image most need no look
            best[query[p]] = max(best[query[p]], _cosine(queries[query[p]], rows[row[p]]))
