"""Which grid rows are nearest to which, exactly, at the speed of single precision.

Products of matrices in float32 rule out nearly all pairs, whatever rounding did to them; the few
that are left are worked out exactly. So no order of sums, and no number of threads, moves a bit.
"""

import numba
import numpy as np

_TILE = 4096  # rows compared at a time
_EXACT = {"nogil": True, "cache": True, "fastmath": {"reassoc", "contract"}}  # sums are exact


def squares(rows: np.ndarray) -> np.ndarray:
    """Exact squared lengths of grid rows: (n, m) → (n,) float64."""
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64)


def slack(m: int) -> float:
    """More than rounding moves an inner product of two rows of length 1 in float32, in any order
    of its m terms: Higham, 2002, Eq. 3.5, with room for rows a little longer than 1."""
    return 1.1 * m * 2.0**-24


def lower(gain: np.ndarray, rows: np.ndarray, square: np.ndarray, centers: np.ndarray) -> None:
    """gain_i ← min(gain_i, min_j ‖rows_i - centers_j‖²), in place. gain, square: (n,) float64, the
    latter of the rows; rows: (n, m), centers: (b, m), float32 grid rows of length 1. O(n·m·b)."""
    own, wide = squares(centers), slack(rows.shape[1])
    for first in range(0, len(rows), _TILE):
        tile = slice(first, first + _TILE)
        about = rows[tile] @ centers.T
        _lower(gain[tile], rows[tile], square[tile], centers, own, about, wide)


def nearest(rows: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centre with the largest inner product, the first of equals, and that product: (n,) int64
    and (n,) float64. rows: (n, m), centers: (b, m), float32 grid rows of length 1. O(n·m·b)."""
    which, product = np.empty(len(rows), np.int64), np.empty(len(rows))
    wide = slack(rows.shape[1])
    for first in range(0, len(rows), _TILE):
        tile = slice(first, first + _TILE)
        about = rows[tile] @ centers.T
        _nearest(which[tile], product[tile], rows[tile], centers, about, wide)
    return which, product


@numba.njit(**_EXACT)
def dot(a, b):
    """The inner product of two grid rows, exact: the order is the compiler's to choose."""
    total = 0.0
    for j in range(len(a)):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@numba.njit(**_EXACT)
def _lower(gain, rows, square, centers, own, about, wide):
    for i in range(len(rows)):
        for j in range(len(centers)):
            both = square[i] + own[j]
            if both - 2 * (about[i, j] + wide) < gain[i]:
                gain[i] = min(gain[i], max(both - 2 * dot(rows[i], centers[j]), 0.0))


@numba.njit(**_EXACT)
def _nearest(which, product, rows, centers, about, wide):
    for i in range(len(rows)):
        least = about[i].max() - 2 * wide
        product[i] = -np.inf
        for j in range(len(centers)):
            if about[i, j] >= least:
                found = dot(rows[i], centers[j])
                if found > product[i]:
                    which[i], product[i] = j, found
