"""GLISTER: images that teach a classifier most about all others."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.gradients import Gradients, gradients_of
from coreset_ray.core.one_step import Judges, OneStep
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Glister(OneStep):
    """Greedy for the log-likelihood of a validation set after one step on what is chosen.

    Equation: θ_S = θ - rate · mean_{j ∈ S} g_j; next = argmax_i rate · ⟨∇L_V(θ_S), g_i⟩, the
    first-order gain of log-likelihood, with g the last layer's gradients and ∇L_V computed anew
    after every `refresh` choices.
    Source: Killamsetty et al., 2021 (GLISTER), Algorithm 2 and Eq. 5. Cost: O(n·c·h·k / refresh).
    Differs: V is all rows at hand, as in DeepCore where none is given; the step is the mean
    gradient, not the sum, so that `rate` means the same at every budget.
    """

    source: ClassVar[str] = "Killamsetty et al., 2021 (GLISTER), Algorithm 2"
    copies: ClassVar[int] = 5

    def sides(self, pool: Pool, kept: np.ndarray) -> tuple[Judges, Gradients, np.ndarray]:
        label = pool["proxy.label"]
        of = gradients_of(pool, label)
        return Judges(of, pool["proxy.probability"], label), of, kept
