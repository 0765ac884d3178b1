"""Dynamic uncertainty: how much the belief in an image's label moved while training."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import check_at_least, recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class DynUnc(PerSample):
    """Keeps images whose label's probability varied most within short spans of the training.

    Equation: score = mean over all windows of `window` consecutive epochs of the standard
    deviation of p_y in it, the square root of the mean squared deviation.
    Source: He et al., 2024 (Dyn-Unc). Cost: O(n·t·window).

    A record of fewer epochs than a window is refused.
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.target_probability",)
    family: ClassVar[str] = "training dynamics"
    source: ClassVar[str] = "Large-scale Dataset Pruning with Dynamic Uncertainty (2024)"
    cost: ClassVar[str] = "O(n·t·window)"
    seeded: ClassVar[bool] = False

    window: int = 10

    def __post_init__(self) -> None:
        check_at_least("window", self.window, 2)

    def score(self, block: Pool, seed: int) -> np.ndarray:
        target = recorded(block, "target_probability", least=self.window, setting="window")
        windows = target.shape[1] - self.window + 1
        total = np.zeros(len(target))
        for first in range(windows):
            total += target[:, first : first + self.window].std(axis=1)
        return total / windows
