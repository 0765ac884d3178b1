"""GLISTER: images that teach a classifier most about all others."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.gradients import gradients_of
from coreset_ray.core.one_step import Judges, one_step_greedy
from coreset_ray.core.pool import Pool
from coreset_ray.core.whole_set import Choice, Given, WholeSet


@dataclass(frozen=True)
class Glister(WholeSet):
    """Greedy for the log-likelihood of a validation set after one step on what is chosen.

    Equation: θ_S = θ - rate · mean_{j ∈ S} g_j; next = argmax_i rate · ⟨∇L_V(θ_S), g_i⟩, the
    first-order gain of log-likelihood, with g the last layer's gradients and ∇L_V computed anew
    after every `refresh` choices.
    Source: Killamsetty et al., 2021 (GLISTER), Algorithm 2 and Eq. 5. Cost: O(n·c·h·k / refresh).
    Differs: V is all rows at hand, as in DeepCore where none is given; the step is the mean
    gradient, not the sum, so that `rate` means the same at every budget.
    """

    rate: float = 0.1
    refresh: int = 20

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability", "proxy.feature", "proxy.label")
    family: ClassVar[str] = "bilevel"
    source: ClassVar[str] = "Killamsetty et al., 2021 (GLISTER), Algorithm 2"
    cost: ClassVar[str] = "O(n·c·h·k / refresh)"
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.rate < np.inf:
            raise ValueError(f"rate={self.rate}: expected a number above 0")
        if self.refresh < 1:
            raise ValueError(f"refresh={self.refresh}: expected at least 1")

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Choice:
        label = pool["proxy.label"]
        of = gradients_of(pool, label)
        free = np.ones(len(pool), bool)
        free[given.kept] = False
        rows, gains = one_step_greedy(
            Judges(of, pool["proxy.probability"], label),
            *(of, pool.uid, free, given.kept, k),
            rate=self.rate,
            refresh=self.refresh,
        )
        return Choice(rows, gains, np.ones(k))
