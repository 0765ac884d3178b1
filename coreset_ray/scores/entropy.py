"""Entropy of the trained classifier's prediction."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Entropy(PerSample):
    """Keeps images whose final prediction is spread over most classes.

    Equation: score = -Σ_c p_c log p_c in the last epoch, in [0, log c].
    Source: Coleman et al., 2020; DeepCore, section 2.2.2. Cost: O(n).
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.entropy",)
    family: ClassVar[str] = "uncertainty"
    source: ClassVar[str] = "Selection via Proxy: Efficient Data Selection for Deep Learning (2020)"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        return recorded(block, "entropy")[:, -1]
