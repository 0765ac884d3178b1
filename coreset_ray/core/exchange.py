"""Draws over a pool whose rows lie in several shards: what each shard tells, what all agree on.

The same arithmetic as `draws`, cut where shards must agree: on the row that covers, and on the
distance of the last neighbour and the sum that normalises penalties. Messages are of the size of
a neighbourhood, whatever the size of the pool.
"""

import numba
import numpy as np

from coreset_ray.core.draws import (
    candidates,
    nearest,
    norm,
    place_of,
    powers,
    radius_guess,
    share,
    workspace,
)


@numba.njit(nogil=True, cache=True)
def nearest_here(index, dims, points, rows, keys, places):
    """For each draw the nearest row of this shard, or -1 where another shard must hold a nearer
    one; its distance, as the bits that order alike; its coordinates."""
    scratch = workspace(index)
    distance = np.empty(len(dims))
    for t in range(len(dims)):
        k, distance[t] = nearest(index, dims[t], points[t], scratch)
        rows[t] = k
        if k >= 0:
            places[t] = place_of(index, dims[t], k)
    keys[:] = distance.view(np.uint64)


@numba.njit(nogil=True, cache=True)
def radii(index, dims, centres, neighbors, out):
    """The first guess of each draw's radius: the same in every shard."""
    scratch = workspace(index)
    for t in range(len(dims)):
        out[t] = radius_guess(index, dims[t], centres[t], neighbors, scratch)


@numba.njit(nogil=True, cache=True)
def within_here(index, dims, centres, covered, radius):
    """Rows of this shard within each draw's radius, without the row that covers.

    Returns (starts (t + 1,), rows, distances): draw t's are at starts[t] … starts[t + 1] - 1.
    """
    scratch = workspace(index)
    starts = np.zeros(len(dims) + 1, np.int64)
    rows, distances = np.empty(1024, np.uint32), np.empty(1024)
    for t in range(len(dims)):
        count = candidates(index, dims[t], centres[t], radius[t], covered[t], scratch)
        filled = starts[t]
        while filled + count > len(rows):
            rows, distances = _twice(rows), _twice(distances)
        for q in range(count):
            rows[filled] = scratch[0][q]
            distances[filled] = scratch[1][q]
            filled += scratch[1][q] <= radius[t]
        starts[t + 1] = filled
    return starts, rows[: starts[-1]], distances[: starts[-1]]


@numba.njit(nogil=True, cache=True)
def settle(starts, distances, first, neighbors, exponent, unit, cut, closest, scale):
    """What all shards agree on for each draw: the distance of the last neighbour, of the first,
    and the scale of penalties; cut is NaN where they hold too few rows.

    starts: (shards, t + 1) int64; distances: of all shards, one after another, each from its
    place in `first` (shards,).
    """
    for t in range(starts.shape[1] - 1):
        total = 0
        for s in range(len(starts)):
            total += starts[s, t + 1] - starts[s, t]
        cut[t] = np.nan
        if total < neighbors:
            continue
        found = np.empty(total)
        filled = 0
        for s in range(len(starts)):
            for q in range(starts[s, t], starts[s, t + 1]):
                found[filled] = distances[first[s] + q]
                filled += 1
        cut[t] = np.partition(found, neighbors - 1)[neighbors - 1]
        found = found[found <= cut[t]]
        scale[t], closest[t] = norm(found, np.empty(len(found)), exponent, unit)


@numba.njit(nogil=True, cache=True)
def share_here(starts, rows, distances, cut, closest, scale, exponent, unit, redundancy):
    """Adds the penalties of this shard's rows for the draws that are settled."""
    for t in range(len(cut)):
        if np.isnan(cut[t]):
            continue
        found = 0
        count = starts[t + 1] - starts[t]
        near, away = np.empty(count, np.uint32), np.empty(count)
        for q in range(starts[t], starts[t + 1]):
            near[found], away[found] = rows[q], distances[q]
            found += distances[q] <= cut[t]
        away, power = away[:found], np.empty(found)
        if closest[t] > 0:
            powers(away, closest[t], exponent, power)
        share(near, away, power, closest[t], scale[t], unit, redundancy)


@numba.njit(nogil=True, cache=True)
def _twice(array):
    larger = np.empty(2 * len(array), array.dtype)
    larger[: len(array)] = array
    return larger
