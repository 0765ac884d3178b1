"""Directions on a grid so fine that it does not matter and so coarse that sums of products are
exact: whoever adds them, in whatever order and blocks, gets the same bits."""

import numpy as np

BITS = 24  # products of two such numbers are multiples of 2⁻⁴⁸, and float64 holds 53 bits
_TILE = 4096  # rows turned to float64 at a time


def grid_rows(embedding: np.ndarray, bits: int = BITS) -> np.ndarray:
    """Rows of length 1 with every entry a multiple of 2^-bits: (n, m) → (n, m) float32.

    Each row depends on itself alone; a row of zeros stays one. An entry is off by at most
    2^-(bits + 1).
    """
    grid = np.empty(embedding.shape, np.float32)
    for first in range(0, len(embedding), _TILE):
        z = embedding[first : first + _TILE].astype(np.float64)
        z /= np.maximum(np.abs(z).max(axis=1, keepdims=True), 1e-300)
        length = np.sqrt(np.einsum("ij,ij->i", z, z))
        z /= np.maximum(length, 1e-300)[:, None]
        grid[first : first + _TILE] = np.rint(z * 2.0**bits) * 2.0**-bits
    return grid


def dots(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """All inner products of grid rows, exact: (n, m), (b, m) → (n, b) float64. O(n·m·b)."""
    found = np.empty((len(rows), len(others)))
    right = others.astype(np.float64).T
    for first in range(0, len(rows), _TILE):
        tile = rows[first : first + _TILE].astype(np.float64)
        np.matmul(tile, right, out=found[first : first + _TILE])
    return found


def whole_sum(rows: np.ndarray, bits: int = BITS) -> np.ndarray:
    """The sum of grid rows in units of 2^-bits: (n, m) → (m,) int64."""
    total = np.zeros(rows.shape[1], np.int64)
    for first in range(0, len(rows), _TILE):
        total += (
            np.rint(rows[first : first + _TILE].astype(np.float64) * 2.0**bits)
            .astype(np.int64)
            .sum(axis=0)
        )
    return total


def mean_row(total: np.ndarray, count: int, bits: int = BITS) -> np.ndarray:
    """The mean of `count` grid rows, from their sum, on the same grid: (m,) float64."""
    return np.rint(total / max(count, 1)) * 2.0**-bits
