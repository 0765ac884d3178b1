"""Directions as whole numbers of 16 bits: half of what there is to read, where a product of one
row with all others waits for memory alone; and every sum is exact, in any order."""

import numba
import numpy as np

from coreset_ray.core.exact import grid_rows

SHORT = 14  # bits behind the point: rows of length 1 fit, and products of two fit in 32 bits


def short_rows(embedding: np.ndarray) -> np.ndarray:
    """Rows of length 1 in units of 2^-14: (n, m) → (n, m) int16. An entry is off by at most
    2^-15; a row of zeros stays one."""
    return np.rint(grid_rows(embedding, SHORT) * np.float32(2.0**SHORT)).astype(np.int16)


@numba.njit(nogil=True, cache=True, parallel=True)
def pull_away(gain, pull, rows, row):
    """gain_i += pull_i - ⟨rows_i, row⟩, in place. gain, pull: (n,) float64; rows: (n, m) int16;
    row: (m,) int16."""
    unit = 2.0 ** (-2 * SHORT)
    for i in numba.prange(len(rows)):
        dot = np.int32(0)
        for j in range(len(row)):
            dot = np.int32(dot + np.int32(np.int32(rows[i, j]) * np.int32(row[j])))
        gain[i] += pull[i] - dot * unit
