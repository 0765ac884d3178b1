"""One draw of coverage and redundancy over a slice of the embedding space, compiled.

Distances are float64 sums of float32 columns, in the order of the dimensions drawn, without
contraction or reordering: the same bits on every machine.
"""

from dataclasses import dataclass

import numba
import numpy as np

from coreset_ray.core.pool import check_finite


@dataclass(frozen=True)
class Slices:
    """A pool laid out by dimension.

    column: (m, n) float32, one contiguous row for each dimension that varies; low, mode, high:
    (m,) float64, its minimum, median and maximum; constant: dimensions left out, by their place
    in the embedding.
    """

    column: np.ndarray
    low: np.ndarray
    mode: np.ndarray
    high: np.ndarray
    constant: np.ndarray


def slices_of(embedding: np.ndarray) -> Slices:
    """Lays out an (n, m) embedding by dimension.

    Raises `ValueError` that names the first row with a NaN or an infinite value.
    """
    check_finite(embedding)
    column = np.ascontiguousarray(embedding.T, np.float32)
    low, high = column.min(axis=1), column.max(axis=1)
    live = high > low
    kept = column if live.all() else column[live]
    mode = np.array([np.median(c.astype(np.float64)) for c in kept])
    return Slices(
        kept, low[live].astype(float), mode, high[live].astype(float), np.flatnonzero(~live)
    )


@numba.njit(nogil=True, cache=True)
def cover_and_penalise(column, dims, points, neighbors, exponent, unit, total):
    """Adds the draws to `total` in place.

    column: (m, n) float32; dims: (t, d) int64; points: (t, d) float64; total: (2, n) int64,
    coverage in ones and redundancy in 1/unit.
    """
    n = column.shape[1]
    alpha = min(neighbors, n - 1)
    distance = np.empty(n)
    near = np.empty(n, np.int64)
    for t in range(len(dims)):
        _distances(column, dims[t], points[t], distance)
        k = _first_smallest(distance)
        total[0, k] += 1
        if alpha > 0:
            centre = points[t].copy()
            for j in range(dims.shape[1]):
                centre[j] = column[dims[t, j], k]
            _distances(column, dims[t], centre, distance)
            distance[k] = np.inf
            found = _nearest(distance, alpha, near)
            _penalise(distance, near[:found], exponent, unit, total[1])


@numba.njit(nogil=True, cache=True)
def _distances(column, dims, point, distance):
    """L1 distance of every row to a point of the slice, in the order of `dims`."""
    first, p = column[dims[0]], point[0]
    for i in range(len(distance)):
        distance[i] = abs(np.float64(first[i]) - p)
    for j in range(1, len(dims)):
        c, p = column[dims[j]], point[j]
        for i in range(len(distance)):
            distance[i] += abs(np.float64(c[i]) - p)


@numba.njit(nogil=True, cache=True)
def _first_smallest(distance):
    """Position of the smallest value, the first of equals."""
    best = 0
    for i in range(1, len(distance)):
        if distance[i] < distance[best]:
            best = i
    return best


@numba.njit(nogil=True, cache=True)
def _nearest(distance, alpha, near):
    """Positions of the values at or below the alpha-th smallest, ascending, into `near`.

    A guess at the cut from a regular sample leaves few candidates; the exact cut is found among
    them. A guess that was too low is raised until it leaves at least alpha.
    """
    n = len(distance)
    step = max(1, n // 1024)
    sample = np.sort(distance[::step])
    place = min(len(sample) - 1, int(alpha / n * len(sample) * 1.2) + 8)
    while True:
        guess = sample[place]
        count = 0
        for i in range(n):
            near[count] = i
            count += distance[i] <= guess
        if count >= alpha:
            break
        place = min(len(sample) - 1, 2 * place + 1)
        if guess == sample[-1]:
            guess = np.inf
            sample[-1] = np.inf
    candidates = np.empty(count)
    for i in range(count):
        candidates[i] = distance[near[i]]
    cut = np.partition(candidates, alpha - 1)[alpha - 1]
    found = 0
    for i in range(count):
        near[found] = near[i]
        found += candidates[i] <= cut
    return found


@numba.njit(nogil=True, cache=True)
def _penalise(distance, near, exponent, unit, redundancy):
    """Shares one whole penalty over the neighbours in proportion to distance^-exponent.

    Written as (closest / distance)^exponent, which neither overflows nor depends on scale. The
    normalising sum is an integer too (in units of 1/fine), so that it does not depend on order.
    """
    closest = distance[near].min()
    if closest == 0.0:
        same = 0
        for i in near:
            same += distance[i] == 0.0
        share = np.int64(unit / same + 0.5)
        for i in near:
            if distance[i] == 0.0:
                redundancy[i] += share
        return
    fine = 2.0**40 if len(near) <= 1 << 22 else 2.0**28  # the sum stays below 2⁶³
    whole = np.int64(0)
    for i in near:
        whole += np.int64(_power(closest / distance[i], exponent) * fine + 0.5)
    scale = unit * fine / whole
    for i in near:
        redundancy[i] += np.int64(_power(closest / distance[i], exponent) * scale + 0.5)


@numba.njit(nogil=True, cache=True)
def _power(x, exponent):
    """x^exponent; by repeated multiplication where the exponent is a small whole number, whose
    result is the same on every platform."""
    whole = np.int64(exponent)
    if whole != exponent or whole > 64:
        return x**exponent
    power = 1.0
    for _ in range(whole):
        power *= x
    return power
