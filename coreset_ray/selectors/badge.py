"""BADGE: uncertain and unlike one another, by seeding k-means++ among gradients."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.gradients import approach, gradients_of, predicted
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import draw_words, unit_interval
from coreset_ray.core.selection import Selection
from coreset_ray.core.whole_set import Given, WholeSet


@dataclass(frozen=True)
class Badge(WholeSet):
    """Draws images whose gradients, were their likeliest class the true one, are long and apart.

    Equation: g_i = (p_i - onehot(argmax p_i)) ⊗ [h_i; 1]; next ~ D_i² / Σ D², with
    D_i = min_{j ∈ S} ‖g_i - g_j‖; the first is drawn uniformly, as are rows once all D are 0.
    Source: Ash et al., 2020, Algorithm 1; k-means++ of Arthur and Vassilvitskii, 2007.
    Cost: O(n·(c + h)·k) at most: features are read only where residuals leave it open. Differs:
    with the bias; the authors' code starts from the longest gradient. The gain is D² (of the
    first, ‖g‖²).
    """

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability", "proxy.feature")
    family: ClassVar[str] = "gradient"
    source: ClassVar[str] = "Ash et al., 2020, Algorithm 1"
    cost: ClassVar[str] = "O(n·(c + h)·k)"
    copies: ClassVar[int] = 5
    continues: ClassVar[bool] = True

    def work(self, n: int, k: int) -> float:
        return float(n) * k

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        of = gradients_of(pool, predicted(pool))
        square, nearest = of.squares(), np.full(len(pool), np.inf)
        for row in given.kept:
            approach(of.residual, of.feature, of.length, square, row, nearest)
        free = np.ones(len(pool), bool)
        free[given.kept] = False
        uniform = unit_interval(draw_words(seed, len(given.kept), k, 1)[:, 0])
        rows, gains = np.empty(k, np.int64), np.empty(k)
        for i in range(k):
            start = i + len(given.kept) == 0
            rows[i] = row = _drawn(np.zeros(len(pool)) if start else nearest, free, uniform[i])
            gains[i] = square[row] if start else nearest[row]
            approach(of.residual, of.feature, of.length, square, row, nearest)
            free[row] = False
        return Selection(rows, gains, np.ones(k))


def _drawn(share: np.ndarray, free: np.ndarray, uniform: float) -> int:
    """A free row, in proportion to its share, or uniformly where no free row has any."""
    share = np.where(free, share, 0)
    below = np.cumsum(share if share.any() else free, dtype=np.float64)
    place = int(np.searchsorted(below, uniform * below[-1], side="right"))
    last = int(np.searchsorted(below, below[-1]))  # where rounding reached the end
    return min(place, last)
