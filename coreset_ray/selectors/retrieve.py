"""RETRIEVE: unlabelled images that help most with those that are labelled already."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.gradients import gradients_of, predicted
from coreset_ray.core.one_step import Judges, one_step_greedy
from coreset_ray.core.pool import Pool
from coreset_ray.core.whole_set import Choice, Given, WholeSet


@dataclass(frozen=True)
class Retrieve(WholeSet):
    """Greedy for the loss of the labelled after one step on unlabelled images that are chosen.

    Equation: θ_S = θ - rate · mean_{j ∈ S} u_j; next = argmax_i rate · ⟨∇L_labelled(θ_S), u_i⟩,
    with u the last layer's gradients of the unlabelled loss, and ∇L computed anew after every
    `refresh` choices; from the budget on it ranks once.
    Source: Killamsetty et al., 2021 (RETRIEVE), Algorithm 1; survey Eq. 37.
    Cost: O(n·c·h·k / refresh). Labelled are the images kept already, with `proxy.label`; where
    none are kept, all rows at hand stand in, with the labels that the classifier was trained on.
    Differs: the unlabelled loss is cross-entropy with the likeliest class, where the paper's
    compares augmentations; the step is the mean gradient, not the sum.
    """

    rate: float = 0.1
    refresh: int = 20

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability", "proxy.feature", "proxy.label")
    family: ClassVar[str] = "bilevel"
    source: ClassVar[str] = "Killamsetty et al., 2021 (RETRIEVE), Algorithm 1"
    cost: ClassVar[str] = "O(n·c·h·k / refresh)"
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.rate < np.inf:
            raise ValueError(f"rate={self.rate}: expected a number above 0")
        if self.refresh < 1:
            raise ValueError(f"refresh={self.refresh}: expected at least 1")

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Choice:
        labelled = given.kept if len(given.kept) else np.arange(len(pool))
        true = pool.take(labelled)
        label = true["proxy.label"]
        judges = Judges(gradients_of(true, label), true["proxy.probability"], label)
        free = np.ones(len(pool), bool)
        free[given.kept] = False
        rows, gains = one_step_greedy(
            judges,
            *(gradients_of(pool, predicted(pool)), pool.uid, free, given.kept[:0], k),
            rate=self.rate,
            refresh=self.refresh,
        )
        return Choice(rows, gains, np.ones(k))
