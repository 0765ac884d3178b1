"""The highest scores."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.rule import Ranked, Rule


@dataclass(frozen=True)
class Top(Rule):
    """Keeps the highest scores.

    Equation: argmax over S, |S| = k, of Σ_{i ∈ S} score_i. Source: every score-based method.
    Cost: O(n).
    """

    family: ClassVar[str] = "rule"
    source: ClassVar[str] = "every score-based method"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False
    reason: ClassVar[str] = "top score"

    def key(self, rows: Ranked, seed: int) -> np.ndarray:
        return rows.score
