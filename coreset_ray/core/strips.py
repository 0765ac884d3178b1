"""The rows of one slice of two dimensions, laid out so that a search reads few of them.

Rows are cut into strips along the second dimension, and into cells along the first within each
strip; cells of a strip follow one another, so a range of the first dimension is one run of
places. Bounds of strips and cells follow the quantiles of the pool's sample, through a code that
never falls where values rise: which cells a search reads changes speed and never an answer.
"""

from typing import NamedTuple

import numba
import numpy as np

from coreset_ray.core.lanes import number

_BITS = 18  # of a float32, dropped for the code
_LEVELS = 1 << (32 - _BITS)  # the codes there are
_MIDDLE = 255  # rows of the sample whose median is the centre of the codes
_ROWS_A_CELL = 3
_MOST_CELLS = 2048  # in a strip
_STRIPS = 4.0  # strips for each that a neighbourhood would be wide, were it one of squares
_SURE = 1e-9  # relative, far above what distances are rounded by


class Cells(NamedTuple):
    """A slice of n rows in s strips of c cells.

    x, y: (n,) float32 in the order of cells; row: (n,) uint32; first: (s·c + 1,) int32, where each
    cell starts; low, high: (s,) float64, extremes of y in a strip; middle: of both dimensions,
    float32; cell_of, strip_of: (levels,) int32 by code; wide: c.
    """

    x: np.ndarray
    y: np.ndarray
    row: np.ndarray
    first: np.ndarray
    low: np.ndarray
    high: np.ndarray
    middle: np.ndarray
    cell_of: np.ndarray
    strip_of: np.ndarray
    wide: int


@numba.njit(nogil=True, cache=True)
def laid_out(index, dims, alpha):
    """The cells of a slice, fit for neighbourhoods of alpha rows."""
    x, y = _floats(index.value[dims[0]]), _floats(index.value[dims[1]])
    n = len(x)
    strips = int(min(n, 1 + _STRIPS * np.sqrt(n / alpha)))
    wide = int(max(1, min(_MOST_CELLS, n // (_ROWS_A_CELL * strips))))
    middle = np.empty(2, np.float32)
    cell_of = _quantiles(index.sample[dims[0]], wide, middle[:1])
    strip_of = _quantiles(index.sample[dims[1]], strips, middle[1:])
    key = np.empty(n, np.int32)
    first = np.zeros(strips * wide + 2, np.int32)
    _keys(x, y, middle, cell_of, strip_of, wide, key)
    for i in range(n):
        first[key[i] + 2] += 1
    for c in range(2, len(first)):
        first[c] += first[c - 1]
    xs, ys, row = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.uint32)
    for i in range(n):
        place = first[key[i] + 1]
        first[key[i] + 1] = place + 1
        xs[place], ys[place], row[place] = x[i], y[i], i
    first = first[:-1]
    low, high = _extremes(ys, first, wide)
    return Cells(xs, ys, row, first, low, high, middle, cell_of, strip_of, wide)


@numba.njit(nogil=True, cache=True)
def _floats(column):
    """A copy in float32, exact."""
    out = np.empty(len(column), np.float32)
    for i in range(len(column)):
        out[i] = number(column, i)  # type: ignore[call-arg]
    return out


@numba.njit(nogil=True, cache=True)
def _quantiles(sample, parts, middle):
    """(levels,) int32: which of so many parts each code falls in; about equally many rows in
    each. Sets the middle, (1,), to which codes are relative."""
    some = np.sort(sample[:_MIDDLE])
    middle[0] = some[len(some) // 2]
    held = np.zeros(_LEVELS, np.int32)
    for value in sample:
        held[level_of(value, middle[0])] += 1
    before, scale = np.int32(0), parts / (len(sample) + 0.5)  # never as many as parts
    for level in range(_LEVELS):
        here = held[level]
        held[level] = np.int32(before * scale)
        before = np.int32(before + here)
    return held


@numba.njit(nogil=True, cache=True)
def level_of(value, middle):
    """The code of a float32: the upper bits of its difference from the middle, which order as
    differences do. It never falls where the value rises."""
    apart = np.float32(value - middle) + np.float32(0.0)  # no negative zero
    return (_ordered(np.float32(apart).view(np.int32)) >> _BITS) + (_LEVELS // 2)


@numba.njit(nogil=True, cache=True)
def _ordered(bits):
    """Bits of a float32 → an int32 of the same order; its own inverse."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@numba.njit(nogil=True, cache=True)
def _keys(x, y, middle, cell_of, strip_of, wide, key):
    """The cell of each row, (n,) int32."""
    apart = np.empty(len(x), np.float32)
    bits = apart.view(np.int32)
    for i in range(len(x)):
        apart[i] = (y[i] - middle[1]) + np.float32(0.0)
    for i in range(len(x)):
        key[i] = strip_of[(_ordered(bits[i]) >> _BITS) + (_LEVELS // 2)] * wide
    for i in range(len(x)):
        apart[i] = (x[i] - middle[0]) + np.float32(0.0)
    for i in range(len(x)):
        key[i] += cell_of[(_ordered(bits[i]) >> _BITS) + (_LEVELS // 2)]


@numba.njit(nogil=True, cache=True)
def _extremes(ys, first, wide):
    """Least and greatest y of each strip; found as integers, by vector instructions."""
    strips = len(first) // wide
    low, high = np.empty(strips), np.empty(strips)
    bits = ys.view(np.int32)
    ends = np.empty(2, np.int32)
    for s in range(strips):
        part = bits[first[s * wide] : first[(s + 1) * wide]]
        if len(part) == 0:  # anything that keeps their order
            low[s] = high[s] = high[s - 1] if s > 0 else ys.min()
            continue
        least, most = np.int32(2**31 - 1), np.int32(-(2**31))
        for b in part:
            least = min(least, _ordered(b))
            most = max(most, _ordered(b))
        ends[0], ends[1] = _ordered(least), _ordered(most)
        low[s], high[s] = ends.view(np.float32)
    return low, high


@numba.njit(nogil=True, cache=True)
def run_of(cells, strip, apart, x, radius):
    """Places (from, to) of a strip that hold all its rows within the radius of x, y; apart: how
    far the strip is from y, no more than the radius."""
    reach = radius - apart + _SURE * radius + 1e-15 * abs(x)
    start = strip * cells.wide
    low = cells.cell_of[level_of(np.float32(x - reach), cells.middle[0])]
    high = cells.cell_of[level_of(np.float32(x + reach), cells.middle[0])]
    return cells.first[start + low], cells.first[start + high + 1]


@numba.njit(nogil=True, cache=True)
def distances_of(cells, start, end, x, y, out):
    """L1 distances of places from start to end, in float64."""
    xs, ys = cells.x[start:end], cells.y[start:end]
    for i in range(len(xs)):
        out[i] = abs(np.float64(xs[i]) - x) + abs(np.float64(ys[i]) - y)
