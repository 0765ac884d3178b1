"""The arithmetic of k-means, the same bit for bit however rows are split over workers.

n rows of m dimensions, c centroids, each in a group: a row goes to the nearest centroid of its own
group. FAISS says which centroids may be nearest; distances are then measured as float64 sums in the
order of the dimensions, and sums over rows are of whole numbers. A spherical k-means is the same
with rows and centroids of length 1, where the squared distance is twice 1 - cosine.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numba
import numpy as np

from coreset_ray.core.cosine import unit_rows

_NEAR = 8  # centroids that FAISS is asked for
_ROUNDING = 2.0**-24  # of one float32 operation
_BITS = 62  # of a sum over all rows
_BLOCK = 1 << 16  # rows that FAISS is given at once


@dataclass(frozen=True)
class Space:
    """What rows are clustered as, and the whole numbers their sums are kept in.

    shift, scale: (m,) float64, subtracted and divided by first; spherical: then to length 1;
    value_bits: (m,) and cost_bits: the exponents of the numbers that a value or a squared distance
    is multiplied by, such that the sum over all rows of the pool is below 2⁶².
    """

    shift: np.ndarray
    scale: np.ndarray
    spherical: bool
    value_bits: np.ndarray
    cost_bits: int

    def rows(self, embedding: np.ndarray) -> np.ndarray:
        """(n, m) embeddings → (n, m) float32, zeros of one sign."""
        rows = ((embedding - self.shift) / self.scale).astype(np.float32)
        return (unit_rows(rows) if self.spherical else rows) + np.float32(0)

    def distance(self, cost: np.ndarray) -> np.ndarray:
        """Squared distances → what a user reads, (n,) float32: 1 - cosine, or Euclidean. A row of
        zeros has no cosine; where spherical its distance is ½."""
        return (cost / 2 if self.spherical else np.sqrt(cost)).astype(np.float32)

    def total(self, whole: np.ndarray) -> np.ndarray:
        """Sums of squared distances, or of 1 - cosine, float64, from the whole numbers they were
        kept in."""
        return np.ldexp(whole.astype(np.float64), -self.cost_bits) / (2 if self.spherical else 1)


def space_of(
    low: np.ndarray,
    high: np.ndarray,
    moments: tuple[np.ndarray, np.ndarray] | None,
    *,
    spherical: bool,
    rows: int,
) -> Space:
    """The space of a pool of so many rows whose dimensions lie between low and high, (m,) each.

    moments: mean and standard deviation, (m,) each, to standardise by; a dimension that does not
    vary is only shifted.
    """
    shift, scale = moments if moments is not None else (np.zeros(len(low)), np.ones(len(low)))
    scale = np.where(scale > 0, scale, 1.0)
    reach = np.maximum(np.abs(low - shift), np.abs(high - shift)) / scale
    reach = np.ones(len(low)) if spherical else reach
    value = np.frexp(reach)[1]  # |x| < 2^value, up to one rounding
    cost = 3 if spherical else int(np.frexp(4 * np.square(reach).sum())[1])
    bits = _BITS - 1 - rows.bit_length()
    return Space(shift, scale, spherical, bits - value.astype(np.int64), bits - cost)


class Nearest:
    """Centroids (c, m) float32 that rows are assigned to; group: of each, (c,)."""

    def __init__(self, centroids: np.ndarray, group: np.ndarray, resources: Any = None):
        self.resources = resources  # of FAISS on a GPU
        self.groups = {}
        for g in np.unique(group):
            number = np.flatnonzero(group == g).astype(np.int32)
            self.groups[int(g)] = number, np.ascontiguousarray(centroids[number])

    def assign(self, rows: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest centroid of each row, (n,) int32, ties to the smallest number, and its
        squared distance (n,) float64; -1 and infinity where the row's group has none.

        rows: (n, m) float32; group: (n,).
        """
        cluster, cost = np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
        for g in np.unique(group):
            number, centroids = self.groups.get(int(g), (None, None))
            if number is None or centroids is None:
                continue
            members = np.flatnonzero(group == g)
            for some in np.split(members, range(_BLOCK, len(members), _BLOCK)):
                place, cost[some] = self._nearest(rows[some], centroids)
                cluster[some] = number[place]
        return cluster, cost

    def _nearest(self, rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = min(_NEAR, len(centroids))
        if self.resources is None:
            near, place = faiss.knn(rows, centroids, count)
        else:
            near, place = faiss.knn_gpu(self.resources, rows, centroids, count)
        chosen, cost = np.empty(len(rows), np.int32), np.empty(len(rows))
        longest = float(np.sqrt(np.square(centroids.astype(np.float64)).sum(axis=1).max()))
        slack = 2 * _ROUNDING * (rows.shape[1] + 8)
        _choose(rows, centroids, place, near, longest, slack, chosen, cost)
        return chosen, cost


@numba.njit(nogil=True, cache=True)
def _choose(rows, centroids, place, near, longest, slack, chosen, cost):
    """Measures the candidates that rounding may have put behind the first; all centroids where the
    last candidate is one of them. FAISS is off by (m + 8) 2⁻²⁴ (|x| + |c|)² at most."""
    last = place.shape[1] - 1
    for i in range(len(rows)):
        length = 0.0
        for x in rows[i]:
            length += np.float64(x) * np.float64(x)
        bound = near[i, 0] + slack * (np.sqrt(length) + longest) ** 2
        every = last + 1 < len(centroids) and not near[i, last] > bound
        best, number = np.inf, -1
        for p in range(len(centroids) if every else last + 1):
            if not every and near[i, p] > bound:
                break
            c = p if every else place[i, p]
            apart = _apart(rows[i], centroids[c])
            if apart < best or (apart == best and c < number):
                best, number = apart, c
        chosen[i], cost[i] = number, best


@numba.njit(nogil=True, cache=True)
def _apart(a, b):
    total = 0.0
    for j in range(len(a)):
        apart = np.float64(a[j]) - np.float64(b[j])
        total += apart * apart
    return total


@dataclass(frozen=True)
class Tally:
    """What c clusters hold: rows (c,), sums of their values (c, m) and of their squared distances
    (c,), all int64 in the units of a `Space`. Exact in any order; m = 0 where not asked for."""

    size: np.ndarray
    value: np.ndarray
    cost: np.ndarray

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.size + other.size, self.value + other.value, self.cost + other.cost)


def tally(
    space: Space, count: int, rows: np.ndarray, cluster: np.ndarray, cost: np.ndarray
) -> Tally:
    """The sums of some rows over so many clusters. rows: (n, m), or (n, 0) to leave values out."""
    width = rows.shape[1]
    total = Tally(*(np.zeros(s, np.int64) for s in (count, (count, width), count)))
    unit = np.ldexp(1.0, space.value_bits[:width])
    _add(rows, unit, cluster, np.ldexp(cost, space.cost_bits), *vars(total).values())
    return total


@numba.njit(nogil=True, cache=True)
def _add(rows, unit, cluster, cost, size, value, spent):
    for i in range(len(cluster)):
        c = cluster[i]
        size[c] += 1
        spent[c] += np.int64(np.ceil(cost[i]))  # so that only rows at their centroid count nothing
        for j in range(rows.shape[1]):
            value[c, j] += np.int64(np.rint(np.float64(rows[i, j]) * unit[j]))


def centroids_of(space: Space, total: Tally) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each cluster, (c, m) float32, of length 1 where spherical; and which clusters
    have none, (c,) bool: those without rows, or whose rows cancel out."""
    mean = np.ldexp(total.value.astype(np.float64), -space.value_bits)
    mean = (mean / np.maximum(total.size, 1)[:, None]).astype(np.float32)
    if not space.spherical:
        return mean, total.size == 0
    return unit_rows(mean), (total.size == 0) | ~mean.any(axis=1)


def seeds(rows: np.ndarray, weight: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Weighted k-means++ (Arthur & Vassilvitskii 2007): places of rows, each drawn with odds
    weight · squared distance to the nearest row drawn before; of some draws the one that leaves
    the least is taken. O(n m c).

    rows: (n, m) float32; weight: (n,); uniform: (c, draws) in [0, 1). Needs c rows that differ.
    """
    columns, chosen = np.ascontiguousarray(rows.T), np.empty(len(uniform), np.int64)
    cost, odds = np.full(len(rows), np.inf), weight.astype(np.float64)
    for t, draws in enumerate(uniform):
        sums, last = np.cumsum(odds), np.flatnonzero(odds)[-1]
        places = np.minimum(np.searchsorted(sums, draws * sums[-1], side="right"), last)
        left = [np.minimum(cost, _distances(columns, rows[p])) for p in places]
        best = int(np.argmin([weight @ c for c in left]))
        chosen[t], cost = places[best], left[best]
        odds = weight * cost
    return chosen


@numba.njit(nogil=True, cache=True)
def _distances(columns, center):
    """Squared, of each row, summed as `_apart` does; some rows side by side for speed."""
    total = np.zeros(columns.shape[1])
    for a in range(0, len(total), 512):
        end = min(len(total), a + 512)
        for j in range(len(center)):
            for i in range(a, end):
                apart = np.float64(columns[j, i]) - np.float64(center[j])
                total[i] += apart * apart
    return total


def shares(weight: np.ndarray, most: np.ndarray, count: int) -> np.ndarray:
    """So many clusters over groups in proportion to their weights, each at least one where it may
    have any and no more than `most`: one after another to the highest weight by cluster (D'Hondt).

    weight, most: (g,), `most` at least `count` together. Returns (g,) int64.
    """
    share = np.minimum(most, 1).astype(np.int64)
    for _ in range(count - int(share.sum())):
        ratio = np.where(share < most, weight / (share + 1), -1.0)
        share[np.argmax(ratio)] += 1
    return share
