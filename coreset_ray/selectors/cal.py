"""CAL: images that the classifier sees unlike those that resemble them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.divergence import on_grid, row_divergences
from coreset_ray.core.pool import Pool
from coreset_ray.core.selection import Selection, top_rows
from coreset_ray.core.whole_set import Given, WholeSet


@dataclass(frozen=True)
class Cal(WholeSet):
    """Contrastive examples: near in the embedding, far in what is predicted.

    Equation: score_i = mean over j ∈ N(i) of ½ KL(p_i ‖ p_j) + ½ KL(p_j ‖ p_i); the highest.
    Source: Margatina et al., 2021 (contrastive active learning), Algorithm 1. Cost: O(n·k·c) for k
    neighbours. Differs: neighbours are any images at hand, not labelled ones alone, and both
    directions count; the highest are kept as in the paper, where DeepCore's code keeps the lowest.
    A row with no neighbour at hand scores 0; what is kept already changes nothing.
    neighbors: of the `signals.knn.k` that were found, all where there are fewer.
    """

    neighbors: int = 10

    needs: ClassVar[tuple[str, ...]] = ("knn.neighbor", "proxy.probability")
    family: ClassVar[str] = "decision boundary"
    source: ClassVar[str] = "Margatina et al., 2021, Algorithm 1"
    cost: ClassVar[str] = "O(n·k·c)"
    seeded: ClassVar[bool] = False
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")

    def beside(self, width: Mapping[str, int]) -> int:
        return 40 * width["proxy.probability"]

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        p, log = on_grid(pool["proxy.probability"])
        score, count = np.zeros(len(pool)), np.zeros(len(pool), int)
        for neighbor in pool["knn.neighbor"].T[: self.neighbors]:
            rows = np.flatnonzero(neighbor >= 0)
            near = neighbor[rows]
            score[rows] += row_divergences(p[rows], log[rows], p[near], log[near])
            count[rows] += 1
        score /= np.maximum(count, 1)
        free = np.setdiff1d(np.arange(len(pool)), given.kept)
        best = free[top_rows(score[free], pool.uid[free], k)]
        return Selection(best, score[best], np.ones(k))
