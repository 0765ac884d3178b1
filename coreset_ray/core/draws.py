"""Draws of coverage and redundancy over slices of the embedding space, compiled and exact.

A draw reads one byte a row and dimension to leave few rows that may matter, then computes those
exactly. Distances are float64 sums of float32 or float16 values in the order of the dimensions
drawn, without contraction or reordering: the same bits on every machine. How rows are left out,
and how a radius is guessed, changes speed and never an answer.
"""

import numba
import numpy as np

from coreset_ray.core.lanes import LANES, bits_set, fetch, lowest_bit, number, rows_near
from coreset_ray.core.random import mix

_FAR = 1e300  # beyond any distance of float32 values
_SLACK = 1.001  # codes: for shifts cut short, and for rounding
_AHEAD = 24  # rows fetched before they are needed
_MOST_FILTERED = 3  # dimensions; beyond it two of them tell too little about the distance


@numba.njit(nogil=True, cache=True)
def cover_and_penalise(index, dims, points, chosen, neighbors, exponent, unit, total):
    """Adds draws to `total` in place, in any order of draws.

    index: `columns.Index`; dims: (t, d) int64; points: (t, d) float64; chosen: (t,) int64, a row
    that covers whatever the point, or -1 for the nearest; neighbors: 0 adds no redundancy;
    total: (2, n) int64, coverage in ones and redundancy in 1/unit.
    """
    scratch = workspace(index)
    alpha = min(neighbors, index.value.shape[1] - 1)
    for t in range(len(dims)):
        k = chosen[t]
        if k < 0:
            k = nearest(index, dims[t], points[t], scratch)[0]
        total[0, k] += 1
        if alpha > 0:
            centre = place_of(index, dims[t], k)
            count = neighbourhood(index, dims[t], centre, k, alpha, scratch)
            rows, distance, power = scratch[0], scratch[1][:count], scratch[2][:count]
            scale, closest = norm(distance, power, exponent, unit)
            share(rows, distance, power, closest, scale, unit, total[1])


@numba.njit(nogil=True, cache=True)
def lottery(uid, words, winner, tickets):
    """For each of (t,) uint64 words a row drawn uniformly, a function of word and uids alone:
    the row whose uid, scrambled with the word, is smallest; and that number. O(n) a draw."""
    for t in range(len(words)):
        least = ~np.uint64(0)
        for i in range(len(uid)):
            ticket = mix(uid[i, 0] ^ mix(uid[i, 1] ^ words[t]))
            if ticket <= least:
                winner[t], least = i, ticket
        tickets[t] = least


@numba.njit(nogil=True, cache=True)
def workspace(index):
    """Room for one draw: rows, distances, powers, distances of the sample, words of rows."""
    n = index.value.shape[1] + LANES
    return (
        np.empty(n, np.uint32),
        np.empty(n),
        np.empty(n),
        np.empty(index.sample.shape[1], np.float32),
        np.empty((n // LANES + 1, 2), np.uint64),
    )


@numba.njit(nogil=True, cache=True)
def place_of(index, dims, k):
    """Coordinates of row k in the slice, (d,) float64."""
    centre = np.empty(len(dims))
    for j in range(len(dims)):
        centre[j] = number(index.value[dims[j]], k)  # type: ignore[call-arg]
    return centre


@numba.njit(nogil=True, cache=True)
def nearest(index, dims, point, scratch):
    """The row of these columns nearest to the point, the smallest uid of equals, and its
    distance; (-1, inf) where the pool's sample holds a nearer row than any of them."""
    rows, distance, _, sampled, _ = scratch
    _fill_sample(index.sample, dims, point, sampled)
    best = place_of_least(sampled.view(np.int32))
    bound = 0.0
    for j in range(len(dims)):
        bound += abs(np.float64(index.sample[dims[j], best]) - point[j])
    count = _rows_within(index, dims, point, bound, scratch)
    _exact(index.value, dims, point, rows, count, distance)
    k, least = np.int64(-1), np.inf
    for q in range(count):
        if distance[q] < least:
            k, least = np.int64(rows[q]), distance[q]
        elif distance[q] == least and k >= 0 and before(index.uid, rows[q], k):
            k = np.int64(rows[q])
    return k, least


@numba.njit(nogil=True, cache=True)
def neighbourhood(index, dims, centre, k, alpha, scratch):
    """The alpha rows nearest to row k and all that tie with the last; their number.

    Leaves rows and their distances in the first places of the scratch.
    """
    rows, distance, power = scratch[:3]
    radius = radius_guess(index, dims, centre, alpha, scratch)
    while True:
        count = candidates(index, dims, centre, radius, k, scratch)
        inside = count_within(distance, count, radius)
        if inside >= alpha:
            break
        radius = radius * 1.3 if radius > 0 and count < index.value.shape[1] - 1 else np.inf
    cut = kth(distance, count, alpha, radius, inside, power)
    found = 0
    for q in range(count):
        rows[found] = rows[q]
        distance[found] = distance[q]
        found += distance[q] <= cut
    return found


@numba.njit(nogil=True, cache=True)
def radius_guess(index, dims, centre, alpha, scratch):
    """A distance from the centre within which a little more than alpha rows of the pool are to
    be expected, judged by the sample; infinite where the sample cannot tell."""
    sampled = scratch[3]
    size = len(sampled)
    expected = alpha / index.rows * size
    wanted = int(expected + 1.3 * np.sqrt(expected) + 1.0)
    if wanted >= size:
        return np.inf
    _fill_sample(index.sample, dims, centre, sampled)
    low, high = np.float32(0), np.float32(0)
    for d in dims:
        high += np.float32(256.0 * 2.0 ** np.float64(index.grid[d]))  # no distance is larger
    below, above = 0, size
    for _ in range(24):
        if above - below <= 1 + wanted // 16:
            break
        part = (wanted - below) / (above - below)
        guess = np.float32(low + (high - low) * min(0.9, max(0.1, np.sqrt(part))))
        count = count_within(sampled, size, guess)
        if count >= wanted:
            high, above = guess, count
        else:
            low, below = guess, count
    return np.float64(high)


@numba.njit(nogil=True, cache=True)
def candidates(index, dims, centre, radius, k, scratch):
    """Rows but k that may lie within the radius, with their exact distances; their number."""
    rows, distance = scratch[:2]
    count = _rows_within(index, dims, centre, radius, scratch)
    if k >= 0:
        for q in range(count):
            if rows[q] == k:
                count -= 1
                rows[q] = rows[count]
                break
    _exact(index.value, dims, centre, rows, count, distance)
    return count


@numba.njit(nogil=True, cache=True)
def kth(distance, count, k, limit, within, room):
    """The k-th smallest of the first `count` distances, `within` of which, at least k, are no
    more than `limit`. Brackets it until few are left, and sorts those."""
    low, high = -1.0, limit
    below, above = 0, within
    floor = 0.0
    for turn in range(60):
        if above == k or above - below <= 16:
            break
        part = (k - below - 0.5) / (above - below)
        if turn == 0:
            part = np.sqrt(part)  # in a plane, their number grows with the square of the distance
        elif turn % 4 == 3:
            part = 0.5
        guess = floor + (min(high, _FAR) - floor) * part
        if not floor < guess < high:
            break
        inside = count_within(distance, count, guess)
        if inside >= k:
            high, above = guess, inside
        else:
            low, floor, below = guess, guess, inside
    left = 0
    for q in range(count):
        room[left] = distance[q]
        left += (low < distance[q]) & (distance[q] <= high)
    part = room[:left]
    part.sort()
    return part[k - below - 1]


@numba.njit(nogil=True, cache=True)
def norm(distance, power, exponent, unit):
    """(scale, closest): row i's penalty is round((closest / distance_i)^exponent · scale), in
    1/unit, where scale makes them one whole penalty in all; `power` receives the powers.

    The power neither overflows nor depends on the scale of the data. The normalising sum is an
    integer (in units of 1/fine), so that it does not depend on order. Where rows coincide with
    the centre, closest is 0 and scale their number: they share evenly.
    """
    return norm_of(distance, power, exponent, unit, len(distance))


@numba.njit(nogil=True, cache=True)
def norm_of(distance, power, exponent, unit, found):
    """`norm` of the `found` finite distances among these; powers of the infinite are 0."""
    closest = distance[place_of_least(distance.view(np.int64))]
    if closest == 0.0:
        same = 0
        for d in distance:
            same += d == 0.0
        return np.float64(same), closest
    powers(distance, closest, exponent, power)
    fine = 2.0**40 if found <= 1 << 22 else 2.0**28  # the sum stays below 2⁶³
    whole = np.int64(0)
    for p in power:
        whole += np.int64(p * fine + 0.5)
    return unit * fine / whole, closest


@numba.njit(nogil=True, cache=True)
def share(rows, distance, power, closest, scale, unit, redundancy):
    """Adds each row's penalty."""
    if closest == 0.0:
        part = np.int64(unit / scale + 0.5)
        for q in range(len(distance)):
            if distance[q] == 0.0:
                redundancy[rows[q]] += part
        return
    for q in range(len(distance)):
        redundancy[rows[q]] += np.int64(power[q] * scale + 0.5)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def powers(distance, closest, exponent, power):
    """(closest / distance)^exponent, 0 where the distance is infinite; by repeated multiplication
    where the exponent is a small whole number, whose result is the same on every platform."""
    whole = np.int64(exponent)
    if whole != exponent or whole > 64:
        for q in range(len(distance)):
            power[q] = (closest / distance[q]) ** exponent
        return
    for q in range(len(distance)):
        distance[q] = closest / distance[q]
        power[q] = np.float64(distance[q] > 0.0)
    for _ in range(whole):
        for q in range(len(distance)):
            power[q] *= distance[q]


@numba.njit(nogil=True, cache=True)
def _fill_sample(sample, dims, centre, out):
    first, p = sample[dims[0]], np.float32(centre[0])
    for i in range(len(out)):
        out[i] = abs(first[i] - p)
    for j in range(1, len(dims)):
        column, p = sample[dims[j]], np.float32(centre[j])
        for i in range(len(out)):
            out[i] += abs(column[i] - p)


@numba.njit(nogil=True, cache=True)
def _rows_within(index, dims, centre, radius, scratch):
    """Rows whose codes of two dimensions allow a distance up to the radius; their number."""
    rows = scratch[0]
    n = index.value.shape[1]
    place = min(1, len(dims) - 1)
    a, b, pa, pb = dims[0], dims[place], centre[0], centre[place]
    if index.grid[a] > index.grid[b]:
        a, b, pa, pb = b, a, pb, pa
    shift = index.grid[b] - index.grid[a]
    cx, off_x = _code_of(index, a, pa)
    cy, off_y = _code_of(index, b, pb)
    most = radius * 2.0 ** -np.float64(index.grid[b])
    if a == b:  # one dimension, counted twice
        most *= 2.0
    most = most * (1.0 + 1e-9) + off_x * 2.0 ** -np.float64(shift) + off_y + _SLACK
    if len(dims) > _MOST_FILTERED or not most < 255.0:
        for i in range(n):
            rows[i] = i
        return n
    x, y = index.code[a], index.code[b]
    words, used = scratch[4], 0  # branches on what data holds cost more than what they skip
    for start in range(0, n, LANES):
        word = rows_near(x, y, start, cx, cy, np.uint8(min(shift, 7)), np.uint8(most))  # type: ignore[call-arg]
        words[used, 0], words[used, 1] = word, np.uint64(start)
        used += word != 0
    count = 0
    for w in range(used):
        word, start = words[w, 0], words[w, 1]
        ones = np.int64(bits_set(word))  # type: ignore[call-arg]
        for q in range(4):  # most words have no more
            rows[count + q] = start + lowest_bit(word)  # type: ignore[call-arg]
            word &= word - np.uint64(1)
        for q in range(4, ones):
            rows[count + q] = start + lowest_bit(word)  # type: ignore[call-arg]
            word &= word - np.uint64(1)
        count += ones
    while count > 0 and rows[count - 1] >= n:  # the last word reaches past the last row
        count -= 1
    return count


@numba.njit(nogil=True, cache=True)
def _code_of(index, dim, value):
    """The code of a value, and by how much a difference of codes may exceed that of values."""
    exact = (value - index.low[dim]) * 2.0 ** -np.float64(index.grid[dim])
    code = np.floor(min(255.0, max(0.0, exact)))
    part = min(1.0, max(0.0, exact - code))
    return np.uint8(code), max(part, 1.0 - part)


@numba.njit(nogil=True, cache=True)
def _exact(value, dims, centre, rows, count, distance):
    """L1 distances of rows to the centre, in the order of `dims`."""
    first, p = value[dims[0]], centre[0]
    if len(dims) == 2:
        second, p2 = value[dims[1]], centre[1]
        rows[count : count + _AHEAD] = 0
        for q in range(count):
            fetch(first, rows[q + _AHEAD])  # type: ignore[call-arg]
            fetch(second, rows[q + _AHEAD])  # type: ignore[call-arg]
            i = rows[q]
            distance[q] = abs(number(first, i) - p) + abs(number(second, i) - p2)  # type: ignore[call-arg]
        return
    for q in range(count):
        distance[q] = abs(number(first, rows[q]) - p)  # type: ignore[call-arg]
    for j in range(1, len(dims)):
        column, p = value[dims[j]], centre[j]
        for q in range(count):
            distance[q] += abs(number(column, rows[q]) - p)  # type: ignore[call-arg]


@numba.njit(nogil=True, cache=True)
def count_within(values, count, limit):
    """How many of the first `count` values are at most `limit`."""
    inside = np.int32(0)
    for q in range(count):
        inside = np.int32(inside + np.int32(values[q] <= limit))
    return np.int64(inside)


@numba.njit(nogil=True, cache=True)
def place_of_least(bits):
    """The first place of the smallest of numbers that are at least 0, given as their bits: they
    order alike, and the minimum of integers is found by vector instructions."""
    least = bits[0]
    for i in range(len(bits)):
        if bits[i] < least:
            least = bits[i]
    i = 0
    while bits[i] != least:
        i += 1
    return i


@numba.njit(nogil=True, cache=True)
def before(uid, i, j):
    return uid[i, 0] < uid[j, 0] or (uid[i, 0] == uid[j, 0] and uid[i, 1] < uid[j, 1])
