"""How close the trained classifier's two likeliest classes are."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Margin(PerSample):
    """Keeps images between two classes.

    Equation: score = 1 - (p₁ - p₂) in the last epoch, p₁ ≥ p₂ the largest probabilities.
    Source: Coleman et al., 2020; DeepCore, section 2.2.2. Cost: O(n).
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.confidence", "dynamics.runner_up")
    family: ClassVar[str] = "uncertainty"
    source: ClassVar[str] = "Selection via Proxy: Efficient Data Selection for Deep Learning (2020)"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        first, second = recorded(block, "confidence"), recorded(block, "runner_up")
        return 1 - (first - second)[:, -1]
