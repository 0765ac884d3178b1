"""Forgetting events: images that are learned and lost again."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Forgetting(PerSample):
    """Keeps images never classified right, then those most often forgotten.

    Equation: score = number of epochs e with the image right in e and wrong in e + 1; t + 1,
    above every count, where it was right in no epoch.
    Source: Toneva et al., 2019. Cost: O(n·t).
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.correct",)
    family: ClassVar[str] = "training dynamics"
    source: ClassVar[str] = "An Empirical Study of Example Forgetting (2019), definition 1"
    cost: ClassVar[str] = "O(n·t)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        correct = recorded(block, "correct") > 0
        forgotten = (correct[:, :-1] & ~correct[:, 1:]).sum(axis=1)
        return np.where(correct.any(axis=1), forgotten, correct.shape[1] + 1).astype(np.float64)
