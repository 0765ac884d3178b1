"""EL2N: how far predictions are from the label early in training."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import check_at_least, recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class El2n(PerSample):
    """Keeps images whose prediction was farthest from the label in the first epochs.

    Equation: score = mean over the first `epochs` epochs of ‖p - onehot(y)‖₂, in [0, √2].
    Source: Paul et al., 2021. Cost: O(n·t).
    Differs: one training's mean over epochs, as in ELFS, for a mean over trainings at one epoch.

    A record of fewer epochs is refused.
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.error_norm",)
    family: ClassVar[str] = "error"
    source: ClassVar[str] = "Deep Learning on a Data Diet (2021), definition 2.2"
    cost: ClassVar[str] = "O(n·t)"
    seeded: ClassVar[bool] = False

    epochs: int = 10

    def __post_init__(self) -> None:
        check_at_least("epochs", self.epochs, 1)

    def score(self, block: Pool, seed: int) -> np.ndarray:
        error = recorded(block, "error_norm", least=self.epochs, setting="epochs")
        return error[:, : self.epochs].mean(axis=1)
