"""Moderate coreset: neither the typical images nor the odd ones."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.rule import Ranked, Rule


@dataclass(frozen=True)
class Moderate(Rule):
    """Keeps the scores closest to the median.

    Equation: the k smallest |score_i - median(score)|. With `score.method: prototypicality` and
    `select.balance: clusters` the scores are distances to the centre of the row's cluster, and
    medians those of each cluster, as in the source, whose centres are those of classes.
    Source: Xia et al., 2023 (Moderate coreset), section 3. Cost: O(n). Of an even number the
    median is the mean of the middle two.
    """

    family: ClassVar[str] = "rule"
    source: ClassVar[str] = "Xia et al., 2023, section 3"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False
    reason: ClassVar[str] = "near the median"

    def cuts(self, n: int) -> tuple[int, ...]:
        return (n - 1) // 2, n // 2

    def key(self, rows: Ranked, seed: int) -> np.ndarray:
        upper, lower = rows.value
        return -np.abs(rows.score - (lower + (upper - lower) / 2))
