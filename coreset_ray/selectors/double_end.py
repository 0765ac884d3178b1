"""Double-end pruning: neither the hardest images, which are often mistaken, nor the easiest."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.rule import Ranked, Rule, check_share, hardest, tenths


@dataclass(frozen=True)
class DoubleEnd(Rule):
    """Drops the hardest ⌊beta · n⌋ of a ranking, then the easiest until the budget is left.

    Equation: keeps positions ⌊βn⌋ … ⌊βn⌋ + k - 1, hardest first.
    Source: ELFS section 4.3.2. Cost: O(n). beta: in [0, 1), at most the share that is pruned.
    """

    beta: float = 0.0

    family: ClassVar[str] = "rule"
    source: ClassVar[str] = "ELFS section 4.3.2"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False
    reason: ClassVar[str] = "hardest below the cut"
    searched: ClassVar[str | None] = "beta"

    def __post_init__(self) -> None:
        check_share("beta", self.beta)

    def capacity(self, n: int) -> int:
        return n - hardest(self.beta, n)

    def cuts(self, n: int) -> tuple[int, ...]:
        return (hardest(self.beta, n),)

    def assign(self, rows: Ranked) -> np.ndarray:
        return np.where(rows.past[0], 0, -1)

    def key(self, rows: Ranked, seed: int) -> np.ndarray:
        return rows.score

    def candidates(self, keep: float) -> tuple[float, ...]:
        return tenths(keep)
