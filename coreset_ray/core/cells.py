"""Many draws in one slice of two dimensions, by an index of the slice that is made once. The sums
are those of `draws`, to the last bit."""

import numba
import numpy as np

from coreset_ray.core.draws import before, count_within, kth, norm_of, place_of_least
from coreset_ray.core.strips import distances_of, laid_out, level_of, run_of

_AROUND = 8  # rows looked at on either side of a point for a first bound
_FAR = 1e300  # beyond any distance of float32 values
_TURNS = 16  # guesses at the distance of the last neighbour
_TIGHT = 1.10, 1.30  # rows a guessed radius is to hold, times those wanted


@numba.njit(nogil=True, cache=True)
def cover_and_penalise_slices(index, dims, points, starts, neighbors, exponent, unit, total):
    """Adds the draws of whole or cut slices to `total` in place, each as
    `draws.cover_and_penalise` would.

    index: `columns.Index`; dims: (s, 2) int64, a slice each; points: (t, q, 2) float64, of which
    all q cover and the first alone gives redundancy; starts: (s + 1,) int64, slice i has draws
    starts[i] … starts[i + 1] - 1; neighbors: 0 adds no redundancy; total: (2, n) int64.
    """
    n = index.value.shape[1]
    alpha = min(neighbors, n - 1)
    own = np.empty((2, n), np.int64)
    room = _room(n)
    for s in range(len(dims)):
        cells = laid_out(index, dims[s], max(1, alpha))
        own[:] = 0
        here = points[starts[s] : starts[s + 1]]
        covered = np.empty(len(here), np.int64)
        for t in range(len(here)):
            for q in range(here.shape[1] - 1, -1, -1):
                covered[t] = _nearest(cells, index.uid, here[t, q], room[0])
                own[0, covered[t]] += 1
        if alpha > 0:
            covered.sort()
            _penalise(cells, covered, alpha, exponent, unit, room, own[1])
        for i in range(n):
            total[0, cells.row[i]] += own[0, i]
            total[1, cells.row[i]] += own[1, i]


@numba.njit(nogil=True, cache=True)
def _nearest(cells, uid, point, room):
    """The place of the row nearest to the point, the smallest uid of equals."""
    x, y = point
    strips, wide = len(cells.low), cells.wide
    home = cells.strip_of[level_of(np.float32(y), cells.middle[1])]
    cell = cells.cell_of[level_of(np.float32(x), cells.middle[0])]
    k, least = np.int64(-1), np.inf
    for s in range(max(0, home - 1), min(strips, home + 2)):  # for a first bound
        at = cells.first[s * wide + cell]
        start = max(at - _AROUND, cells.first[s * wide])
        end = min(at + _AROUND, cells.first[(s + 1) * wide])
        for i in range(start, end):
            away = abs(np.float64(cells.x[i]) - x) + abs(np.float64(cells.y[i]) - y)
            least = min(least, away)
    for step in (1, -1):
        s = home if step == 1 else home - 1
        while 0 <= s < strips:
            beyond = cells.low[s] - y if step == 1 else y - cells.high[s]
            if beyond > least:
                break
            apart = max(0.0, cells.low[s] - y, y - cells.high[s])
            if apart <= least:  # the point may lie between strips, far from its own
                start, end = run_of(cells, s, apart, x, least)
                k, least = _best_of(cells, uid, start, end, x, y, k, least, room)
            s += step
    return k


@numba.njit(nogil=True, cache=True)
def _best_of(cells, uid, start, end, x, y, k, least, room):
    """The better of place k and the places from start to end; and its distance."""
    if start == end:
        return k, least
    distances_of(cells, start, end, x, y, room)
    part = room[: end - start]
    best = part[place_of_least(part.view(np.int64))]
    if best > least:
        return k, least
    if best < least:
        k = np.int64(-1)
    for i in range(len(part)):
        if part[i] == best and (k < 0 or before(uid, cells.row[start + i], cells.row[k])):
            k = np.int64(start + i)
    return k, best


@numba.njit(nogil=True, cache=True)
def _penalise(cells, covered, alpha, exponent, unit, room, redundancy):
    """Adds the penalties around each covered place, in the order of places; covered: sorted."""
    distance, power, _, runs = room
    radius, t = 0.0, 0
    while t < len(covered):
        k, times = covered[t], 1
        while t + times < len(covered) and covered[t + times] == k:
            times += 1
        t += times
        radius, inside, used, count = _neighbourhood(cells, k, alpha, radius, room)
        cut = _cut(distance[:count], alpha, radius, inside, power, room[2])
        scale, closest = _weigh(distance[:count], power[:count], cut, exponent, unit)
        for r in range(used):
            start, at = runs[r]
            size = runs[r + 1, 1] - at
            _share(
                *(distance[at : at + size], power[at : at + size], closest, scale, unit),
                *(times, redundancy[start : start + size]),
            )


@numba.njit(nogil=True, cache=True)
def _neighbourhood(cells, k, alpha, radius, room):
    """A radius that holds at least alpha rows but k, and the distances of all rows that it may
    hold: (radius, rows within it, runs, rows). A run is a pair (first place, where its distances
    start), with one more pair at the end. Place k is infinitely far."""
    x, y = np.float64(cells.x[k]), np.float64(cells.y[k])
    radius, wider = _radius(cells, x, y, alpha, radius), 1.2
    while True:
        used, count = _gather(cells, k, x, y, radius, room)
        inside = count_within(room[0], count, radius)
        if inside >= alpha:
            return radius, inside, used, count
        radius = min(radius * wider, _FAR) if radius > 0 and count < len(cells.x) else _FAR
        wider *= wider  # rows that coincide let the guess shrink to almost nothing


@numba.njit(nogil=True, cache=True)
def _gather(cells, k, x, y, radius, room):
    """Distances of all rows that may lie within the radius, but place k: (runs, rows)."""
    distance, runs = room[0], room[3]
    strips = len(cells.low)
    home = cells.strip_of[level_of(np.float32(y), cells.middle[1])]
    used, count = 0, 0
    for step in (1, -1):
        s = home if step == 1 else home - 1
        while 0 <= s < strips:
            apart = max(0.0, cells.low[s] - y, y - cells.high[s])
            if apart > radius:
                break
            start, end = run_of(cells, s, apart, x, radius)
            distances_of(cells, start, end, x, y, distance[count:])
            if start <= k < end:
                distance[count + k - start] = np.inf
            runs[used, 0], runs[used, 1] = start, count
            used += 1
            count += end - start
            s += step
    runs[used, 1] = count
    return used, count


@numba.njit(nogil=True, cache=True)
def _radius(cells, x, y, alpha, radius):
    """A distance from (x, y) that holds a little more than alpha rows, judged by whole cells;
    radius: a guess to start from, 0 for none."""
    least, most = alpha * _TIGHT[0] + 2.0, alpha * _TIGHT[1] + 8.0
    if most >= len(cells.x):
        return _FAR
    if radius <= 0.0 or radius >= _FAR:
        radius = (cells.high[-1] - cells.low[0]) * np.sqrt(alpha / len(cells.x)) * 0.25
    low, high = 0.0, np.inf
    for _ in range(30):
        held = _about(cells, x, y, radius)
        if least <= held <= most:
            break
        if held < least:
            low = radius
        else:
            high = radius
        step = np.sqrt(0.5 * (least + most) / max(held, 1.0))
        guess = radius * min(3.0, max(0.3, step))
        if not low < guess < high:
            guess = 0.5 * (low + high) if high < np.inf else 2.0 * low
        if not low < guess < high:
            break
        radius = guess
    return radius if held >= least or high == np.inf else high


@numba.njit(nogil=True, cache=True)
def _about(cells, x, y, radius):
    """About how many rows lie within the radius: those in cells of each strip that reach into
    it, the strip taken for a line at its middle."""
    strips = len(cells.low)
    home = cells.strip_of[level_of(np.float32(y), cells.middle[1])]
    held = 0.0
    for step in (1, -1):
        s = home if step == 1 else home - 1
        while 0 <= s < strips:
            if max(cells.low[s] - y, y - cells.high[s]) > radius:
                break
            apart = abs(0.5 * (cells.low[s] + cells.high[s]) - y)
            if apart <= radius:
                start, end = run_of(cells, s, apart, x, radius)
                held += end - start
            s += step
    return held


@numba.njit(nogil=True, cache=True)
def _cut(distance, alpha, radius, inside, room, more):
    """A number that keeps the alpha smallest distances and those that tie with the last, and
    no other; `inside` of them, at least alpha, are within the radius.

    Rows within a distance grow with its square, about: guesses by that close in on it from both
    sides. Most often one is met that exactly alpha distances are within.
    """
    count = len(distance)
    low, high, below, above = 0.0, radius, 0, inside
    guess = radius * np.sqrt((alpha + 0.5) / above)
    for turn in range(_TURNS):
        if above == alpha:
            return high
        if not low < guess < high:
            guess = 0.5 * (low + high)
        inside = count_within(distance, count, guess)
        if inside >= alpha:
            high, above = guess, inside
        else:
            low, below = guess, inside
        if turn < 2:
            off = alpha + 0.5 - inside
            guess *= 1.0 + 0.5 * (off + 0.25 * off) / alpha
        elif turn % 4 < 3:
            guess = low + (high - low) * (alpha + 0.5 - below) / (above - below)
        else:
            guess = 0.5 * (low + high)
    if below == 0:
        low = -1.0
    left = 0
    for d in distance:  # several tie
        room[left] = d
        left += np.int64(low < d) & np.int64(d <= high)
    return kth(room, left, alpha - below, high, left, more)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _weigh(distance, power, cut, exponent, unit):
    """`draws.norm` of the distances up to the cut; powers of the others are 0."""
    closest = distance[place_of_least(distance.view(np.int64))]
    if exponent != 4.0 or closest == 0.0 or len(distance) > 1 << 22:
        found = count_within(distance, len(distance), cut)
        for i in range(len(distance)):
            distance[i] = distance[i] if distance[i] <= cut else np.inf
        return norm_of(distance, power, exponent, unit, found)
    whole = np.int64(0)
    for i in range(len(distance)):  # the arithmetic of `draws.norm` in one pass
        part = closest / distance[i]
        p = part * part * part * part if distance[i] <= cut else 0.0
        power[i] = p
        whole += np.int64(p * 2.0**40 + 0.5)
    return unit * 2.0**40 / whole, closest


@numba.njit(nogil=True, cache=True)
def _share(distance, power, closest, scale, unit, times, redundancy):
    """Adds the penalties of a run, as often as its centre was covered."""
    if closest == 0.0:
        part = np.int64(unit / scale + 0.5)
        for i in range(len(distance)):
            redundancy[i] += times * part * (distance[i] == 0.0)
        return
    if times == 1:
        for i in range(len(power)):
            redundancy[i] += np.int64(power[i] * scale + 0.5)
        return
    for i in range(len(power)):
        redundancy[i] += times * np.int64(power[i] * scale + 0.5)


@numba.njit(nogil=True, cache=True)
def _room(n):
    """Room for distances, for powers and for a search, each (n,), and for n runs. They lie at
    different places of a page: where two arrays do not, a store delays loads of the other."""
    stride = (n // 512 + 1) * 512 + 172
    whole = np.empty(3 * stride)
    return (
        whole[:n],
        whole[stride : stride + n],
        whole[2 * stride : 2 * stride + n],
        np.empty((n + 2, 2), np.int64),
    )
