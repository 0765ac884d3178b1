"""GraNd: how far an image pulls a classifier early in training."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Grand(PerSample):
    """Keeps images whose loss has the largest gradient, on average over short trainings.

    Equation: score = mean over runs of ‖p - onehot(y)‖₂ · √(‖φ(x)‖₂² + 1), the norm of the
    gradient by the last layer's weight and bias, φ(x) its input.
    Source: Paul et al., 2021; DeepCore, section 2.2.3. Cost: O(n·runs).
    Differs: gradients of the last layer, as in DeepCore, for those of the whole network.
    """

    needs: ClassVar[tuple[str, ...]] = ("proxy.gradient_norm",)
    family: ClassVar[str] = "error"
    source: ClassVar[str] = "Deep Learning on a Data Diet (2021), definition 2.1"
    cost: ClassVar[str] = "O(n·runs)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        # Row after row in memory, so that what is summed over a row does not depend on its block.
        return np.array(block["proxy.gradient_norm"], np.float64, order="C").mean(axis=1)
