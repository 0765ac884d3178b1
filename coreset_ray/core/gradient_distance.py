"""Distances between gradients, in blocks: nearest ones, and whom each serves."""

from collections.abc import Iterator

import numba
import numpy as np

from coreset_ray.core.gradients import Gradients

_BLOCK = 1 << 22  # distances at a time


def nearest_alike(of: Gradients, label: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest gradients of the same label, each row among its own: (n, count) int32 rows, -1
    where there are fewer, and (n, count) float32 distances.

    Blocked: O(n²·(c + h)) over the number of labels in time, O(n·count) in memory.
    """
    count = max(1, min(count, int(np.bincount(label).max(initial=0))))
    neighbor = np.full((len(of), count), -1, np.int32)
    distance = np.zeros((len(of), count), np.float32)
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        own = of.take(rows)
        width = min(count, len(rows))
        for tile, square in _squares(own, own):
            here = np.arange(tile.start, tile.stop)
            square[here - tile.start, here] = -1  # itself, before its duplicates
            found = closest(square, width)
            near = np.maximum(np.take_along_axis(square, found, 1), 0)
            neighbor[rows[tile], :width] = rows[found]
            distance[rows[tile], :width] = np.sqrt(near)
    return neighbor, distance


def served_by(of: Gradients, label: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How many rows each of those chosen is nearest to, (n,) int64, 0 for all others.

    A row counts for one of its label; where none of it is chosen, for the nearest of all. Ties go
    to the smallest row.
    """
    count = np.zeros(len(of), np.int64)
    chosen = np.sort(chosen)
    for value in np.unique(label) if len(chosen) else ():
        rows = np.flatnonzero(label == value)
        alike = chosen[label[chosen] == value]
        own = alike if len(alike) else chosen
        for _, square in _squares(of.take(rows), of.take(own)):
            count += np.bincount(own[square.argmin(axis=1)], minlength=len(of))
    return count


def closest(square: np.ndarray, count: int) -> np.ndarray:
    """The `count` smallest of each row, ties to the smaller column: (b, n) float64 → (b, count)
    int32 columns, ascending."""
    limit = np.partition(square, count - 1, axis=1)[:, count - 1]
    return _up_to(square, limit, count)


@numba.njit(nogil=True, cache=True)
def _up_to(square, limit, count):
    found = np.empty((len(square), count), np.int32)
    for i in range(len(square)):
        ties = count
        for j in range(square.shape[1]):
            ties -= square[i, j] < limit[i]
        place = 0
        for j in range(square.shape[1]):
            if square[i, j] == limit[i]:
                ties -= 1
            if square[i, j] < limit[i] or (square[i, j] == limit[i] and ties >= 0):
                found[i, place] = j
                place += 1
    return found


def _squares(of: Gradients, others: Gradients) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances, in tiles of rows: exactly 0 between equal gradients."""
    size, theirs, width = of.squares(), others.squares(), max(1, _BLOCK // max(len(others), 1))
    for first in range(0, len(of), width):
        tile = slice(first, min(len(of), first + width))
        square = of.take(tile).products(others)
        square *= -2
        square += size[tile, None] + theirs
        yield tile, np.maximum(square, 0, out=square)
