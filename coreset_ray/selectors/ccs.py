"""Coverage-centric selection: as many images of each difficulty as there are."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.random import uid_uniform
from coreset_ray.core.rule import Ranked, Rule, check_share, hardest, tenths

_USE = 0xCC5  # apart from other random numbers of the same seed


@dataclass(frozen=True)
class CCS(Rule):
    """Drops the hardest ⌊beta · n⌋, divides the range of the other scores into strata of equal
    width, and draws uniformly from each.

    Equation: stratum ⌊strata · (score - low) / (high - low)⌋; the budget goes to the smallest
    stratum first, each getting min(its size, what is left ÷ strata left).
    Source: Zheng et al., 2023 (CCS), Algorithm 1. Cost: O(n). What empty strata would have had
    goes to the others.
    """

    strata: int = 50
    beta: float = 0.0

    family: ClassVar[str] = "rule"
    source: ClassVar[str] = "Zheng et al., 2023, Algorithm 1"
    cost: ClassVar[str] = "O(n)"
    reason: ClassVar[str] = "drawn from its stratum"
    searched: ClassVar[str | None] = "beta"

    def __post_init__(self) -> None:
        check_share("beta", self.beta)
        if self.strata < 1:
            raise ValueError(f"strata={self.strata}: expected at least 1")

    @property
    def divisions(self) -> int:
        return self.strata

    def capacity(self, n: int) -> int:
        return n - hardest(self.beta, n)

    def cuts(self, n: int) -> tuple[int, ...]:
        return hardest(self.beta, n), n - 1

    def assign(self, rows: Ranked) -> np.ndarray:
        high, low = rows.value
        width = np.where(high > low, high - low, 1.0)
        share = np.clip((rows.score - low) / width, 0, 1)  # those dropped lie above
        place = np.minimum((self.strata * share).astype(np.int64), self.strata - 1)
        return np.where(rows.past[0], place, -1)

    def key(self, rows: Ranked, seed: int) -> np.ndarray:
        return uid_uniform(seed, rows.uid, _USE)

    def candidates(self, keep: float) -> tuple[float, ...]:
        return tenths(keep)
