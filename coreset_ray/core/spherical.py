"""k-means by direction, the same bit for bit for any number of threads: products are exact, and so
are sums of grid rows."""

import numba
import numpy as np

from coreset_ray.core.exact import grid_rows
from coreset_ray.core.nearest import lower, nearest, squares
from coreset_ray.core.random import uid_uniform

_SEEDING = 1 << 20  # the use of random numbers, and those after it
_FARTHEST = 4.0  # the largest squared distance of two rows of length 1
_TILE = 4096  # rows turned to float64 at a time


def standard_rows(embedding: np.ndarray) -> np.ndarray:
    """Grid rows of length 1 of what is left when each column has mean 0 and deviation 1: (n, m) →
    (n, m) float32. A constant column counts for nothing."""
    tiles = [slice(first, first + _TILE) for first in range(0, len(embedding), _TILE)]
    total, square = np.zeros(embedding.shape[1]), np.zeros(embedding.shape[1])
    for tile in tiles:
        total += embedding[tile].astype(np.float64).sum(axis=0)
    mean = total / max(len(embedding), 1)
    for tile in tiles:
        square += ((embedding[tile] - mean) ** 2).sum(axis=0)
    scale = np.sqrt(square / max(len(embedding), 1))
    scale[scale <= 1e-12 * np.abs(mean)] = np.inf  # what rounding leaves of a constant column
    rows = np.empty(embedding.shape, np.float32)
    for tile in tiles:
        rows[tile] = grid_rows((embedding[tile] - mean) / scale)
    return rows


def cluster(
    rows: np.ndarray,
    uid: np.ndarray,
    count: int,
    seed: int,
    *,
    iterations: int,
    fixed: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, the centre of each row, and the cosine of both: (c, m) float32, (n,) int64 and (n,)
    float64.

    rows: (n, m) grid rows of length 1 in ascending order of uid. fixed: (f,) rows that are centres
    and stay so, the first of those found. Beside them there are `count`, fewer where fewer rows
    differ. O(n·m·count·iterations).
    """
    seeds = first_centers(rows, uid, count, seed, fixed)
    centers = rows[np.concatenate([fixed, seeds])]
    which, cosine = nearest(rows, centers)
    for _ in range(iterations):
        sums = _sums(rows, which, len(centers))
        moved = np.flatnonzero(np.bincount(which, minlength=len(centers))[len(fixed) :])
        centers[len(fixed) + moved] = grid_rows(sums[len(fixed) + moved])
        before = which
        which, cosine = nearest(rows, centers)
        if np.array_equal(which, before):
            break
    return centers, which, cosine


def first_centers(
    rows: np.ndarray, uid: np.ndarray, count: int, seed: int, fixed: np.ndarray
) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next row is drawn in proportion to its
    squared distance from the nearest so far, as the first of exponential clocks that run at these
    rates, each set by the row's uid and the turn. (count,) int64, fewer where no row is left at a
    distance."""
    square, apart = squares(rows), np.full(len(rows), _FARTHEST)
    if len(fixed):
        lower(apart, rows, square, rows[fixed])
    found: list[int] = []
    while len(found) < count and apart.any():
        found.append(first_clock(apart, uid, seed, _SEEDING + len(found)))
        lower(apart, rows, square, rows[found[-1:]])
    return np.array(found, np.int64)


def first_clock(rate: np.ndarray, uid: np.ndarray, seed: int, use: int) -> int:
    """A row drawn in proportion to its rate, at least one of which is above 0; ties to the first
    row. rate: (n,) float64."""
    clock = -np.log1p(-uid_uniform(seed, uid, use))
    return int(np.argmin(np.where(rate > 0, clock / np.where(rate > 0, rate, 1), np.inf)))


@numba.njit(nogil=True, cache=True)
def _sums(rows, which, count):
    """Of the rows of each centre, (count, m) float64: exact, as entries are multiples of 2^-24."""
    total = np.zeros((count, rows.shape[1]))
    for i in range(len(rows)):
        total[which[i]] += rows[i]
    return total
