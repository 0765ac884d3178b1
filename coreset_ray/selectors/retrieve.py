"""RETRIEVE: unlabelled images that help most with those that are labelled already."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.gradients import Gradients, gradients_of, predicted
from coreset_ray.core.one_step import Judges, OneStep
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Retrieve(OneStep):
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

    source: ClassVar[str] = "Killamsetty et al., 2021 (RETRIEVE), Algorithm 1"
    copies: ClassVar[int] = 7

    def sides(self, pool: Pool, kept: np.ndarray) -> tuple[Judges, Gradients, np.ndarray]:
        labelled = pool.take(kept if len(kept) else np.arange(len(pool)))
        label = labelled["proxy.label"]
        judges = Judges(gradients_of(labelled, label), labelled["proxy.probability"], label)
        return judges, gradients_of(pool, predicted(pool)), kept[:0]
