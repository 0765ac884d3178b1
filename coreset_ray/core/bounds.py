"""Upper bounds of rows' gains, highest first: what lazy greedy choice keeps of earlier steps."""

import numba
import numpy as np


class Bounds:
    """A binary heap of bounds, in compiled code, and the step at which each was computed.

    row: (r,) int64 ascending; gain: (r,) float64, theirs at step 0. Of equal bounds the smaller
    row is first.
    """

    def __init__(self, row: np.ndarray, gain: np.ndarray) -> None:
        order = np.argsort(-gain, kind="stable")  # what is sorted is a heap
        self._row, self._bound = row[order], gain[order]
        self._step = np.zeros(len(row), np.int64)
        self._size = len(row)

    def stale(self, step: int, count: int) -> np.ndarray:
        """Takes out the first rows while their bounds are of an earlier step, at most so many:
        (s,) int64, none where the first of all is of this step."""
        found = _take(self._row, self._bound, self._step, self._size, step, count)
        self._size -= len(found)
        return found

    def put(self, row: np.ndarray, gain: np.ndarray, step: int) -> None:
        """Puts back rows that were taken out, with their gains at this step."""
        _put(self._row, self._bound, self._step, self._size, row, gain, step)
        self._size += len(row)

    def pop(self, step: int) -> tuple[int, float]:
        """Takes out the first row, whose bound is of this step: it and its gain."""
        gain = float(self._bound[0])
        return int(self.stale(step + 1, 1)[0]), gain


@numba.njit(nogil=True, cache=True)
def _take(row, bound, step_of, size, step, count):
    found = np.empty(min(count, size), np.int64)
    taken = 0
    while taken < len(found) and step_of[0] < step:
        found[taken] = row[0]
        taken += 1
        size -= 1
        place = 0  # of the gap, which sinks to where the last one fits
        while True:
            child = 2 * place + 1
            if child >= size:
                break
            if child + 1 < size and _before(row, bound, child + 1, child):
                child += 1
            if not _before(row, bound, child, size):
                break
            _move(row, bound, step_of, child, place)
            place = child
        _move(row, bound, step_of, size, place)
    return found[:taken]


@numba.njit(nogil=True, cache=True)
def _put(row, bound, step_of, size, rows, gain, step):
    for i in range(len(rows)):
        place = size + i
        row[place], bound[place], step_of[place] = rows[i], gain[i], step
        while place:
            above = (place - 1) // 2
            if not _before(row, bound, place, above):
                break
            row[place], row[above] = row[above], row[place]
            bound[place], bound[above] = bound[above], bound[place]
            step_of[place], step_of[above] = step_of[above], step_of[place]
            place = above


@numba.njit(nogil=True, cache=True)
def _before(row, bound, a, b):
    return bound[a] > bound[b] or (bound[a] == bound[b] and row[a] < row[b])


@numba.njit(nogil=True, cache=True)
def _move(row, bound, step_of, source, target):
    row[target], bound[target], step_of[target] = row[source], bound[source], step_of[source]
