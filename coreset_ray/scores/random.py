"""Uniform random choice: the baseline beside every other method, and the template for a new one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import uid_uniform


@dataclass(frozen=True)
class Random(PerSample):
    """Keeps images drawn uniformly without replacement.

    Equation: score_i ~ U(0, 1), a function of (seed, uid_i): nested in the budget, independent
    of the order of the pool and of what else is in it.
    Source: the baseline of every paper. Cost: O(n).
    """

    needs: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[str] = "baseline"
    source: ClassVar[str] = "baseline"
    cost: ClassVar[str] = "O(n)"

    def score(self, block: Pool, seed: int) -> np.ndarray:
        return uid_uniform(seed, block.uid)
