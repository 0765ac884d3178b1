"""TDDS: images whose contribution to learning keeps changing, late windows counting most."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import check_at_least, recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Tdds(PerSample):
    """Keeps images whose predictions changed least evenly from epoch to epoch.

    Equation: Δ_e = Σ_c |p_e,c (log p_e,c - log p_{e-1},c)|; a window of `window` consecutive
    epochs has R = ‖Δ - mean Δ‖₂ over its window - 1 changes; score = Σ over windows of
    decay·(1 - decay)^a·R, a windows coming after it.
    Source: Zhang et al., 2024, and the authors' code, which says what decay is. Cost:
    O(n·t·window).

    A record of fewer epochs than a window is refused.
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.change",)
    family: ClassVar[str] = "training dynamics"
    source: ClassVar[str] = "Spanning Training Progress: Temporal Dual-Depth Scoring (2024)"
    cost: ClassVar[str] = "O(n·t·window)"
    seeded: ClassVar[bool] = False

    window: int = 10
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_at_least("window", self.window, 3)  # two changes, or none deviates
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay}: expected above 0, at most 1")

    def score(self, block: Pool, seed: int) -> np.ndarray:
        change = recorded(block, "change", least=self.window, setting="window")
        score = np.zeros(len(change))
        for last in range(self.window, change.shape[1] + 1):
            within = change[:, last - self.window + 1 : last]
            apart = within - within.mean(axis=1, keepdims=True)
            deviation = np.sqrt(np.square(apart).sum(axis=1))
            score = self.decay * deviation + (1 - self.decay) * score
        return score
