"""From scores to a coreset: budget, ranking and weights."""

from dataclasses import dataclass

import numpy as np

from coreset_ray.core.pool import uid_order


@dataclass(frozen=True)
class Selection:
    """What is kept, best first.

    rows: (k,) int64 positions in the pool; gains: (k,) float64, the score that earned each its
    place; weights: (k,) float64, the factor a training loss may carry (1 where the method
    defines none).
    """

    rows: np.ndarray
    gains: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, k: int) -> "Selection":
        return Selection(self.rows[:k], self.gains[:k], self.weights[:k])


def resolve_budget(budget: int | float, n: int) -> int:
    """Number of images to keep out of n: an integer is a count, a float a fraction of the pool.

    A fraction is rounded to the nearest count (n = round((1 - p)·N), p the prune rate).
    Raises `ValueError` for a count outside 0 … n or a fraction outside 0 … 1.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float, np.integer, np.floating)):
        raise ValueError(
            f"budget={budget!r}: expected a count (integer) or a fraction from 0.0 to 1.0"
        )
    if isinstance(budget, (int, np.integer)):
        if not 0 <= budget <= n:
            raise ValueError(f"budget={budget}: expected a count from 0 to {n}, the pool's size")
        return int(budget)
    if not 0.0 <= budget <= 1.0:
        raise ValueError(
            f"budget={budget}: a fraction lies from 0.0 to 1.0; write an integer for a count"
        )
    return round(float(budget) * n)


def top_rows(key: np.ndarray, uid: np.ndarray, k: int) -> np.ndarray:
    """The k rows with the highest key, best first; equal keys go to the smaller uid.

    key: (n,) float64 without NaN; uid: (n, 2) uint64. Returns (k,) int64. O(n + k log k).
    """
    assert not np.isnan(key).any(), "a ranking key is NaN"
    if k == 0:
        return np.empty(0, np.int64)
    cut = np.partition(key, len(key) - k)[len(key) - k]
    above = np.flatnonzero(key > cut)
    level = np.flatnonzero(key == cut)
    level = level[uid_order(uid[level])[: k - len(above)]]
    rows = np.concatenate([above, level])
    return rows[np.lexsort((uid[rows, 1], uid[rows, 0], -key[rows]))]
