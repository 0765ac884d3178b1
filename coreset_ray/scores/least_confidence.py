"""How little the trained classifier trusts its own prediction."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class LeastConfidence(PerSample):
    """Keeps images whose likeliest class has the lowest probability.

    Equation: score = 1 - p₁ in the last epoch, p₁ the largest probability.
    Source: Coleman et al., 2020; DeepCore, section 2.2.2. Cost: O(n).
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.confidence",)
    family: ClassVar[str] = "uncertainty"
    source: ClassVar[str] = "Selection via Proxy: Efficient Data Selection for Deep Learning (2020)"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        return 1 - recorded(block, "confidence")[:, -1]
