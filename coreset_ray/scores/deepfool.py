"""DeepFool: how near an image lies to a classifier's decision boundary."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Deepfool(PerSample):
    """Keeps images that the smallest perturbation turns into another class.

    Equation: score = -‖r‖₂, r the perturbation that DeepFool finds within 50 steps; images that
    none was found for come last.
    Source: Ducoffe and Precioso, 2018; Moosavi-Dezfooli et al., 2016. Cost: O(n).
    Differs: of the standardised embedding, which the classifier sees, for the image's pixels.
    """

    needs: ClassVar[tuple[str, ...]] = ("proxy.perturbation",)
    family: ClassVar[str] = "decision boundary"
    source: ClassVar[str] = "Adversarial Active Learning for Deep Networks: a Margin Based Approach"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        found = block["proxy.perturbation"].astype(np.float64)
        return -np.minimum(found, np.finfo(np.float32).max)
