"""Contextual diversity: the prediction least like those of all that is kept, again and again."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.divergence import FARTHEST, divergences, on_grid
from coreset_ray.core.greedy import Greedy, Picked
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import uid_uniform

_TILE = 4096  # rows compared at a time


@dataclass(frozen=True)
class ContextualDiversity(Greedy):
    """Covers the confusions of a classifier: k-center greedy on what it predicts.

    Equation: next = argmax_i min_{j ∈ S} ½ KL(p_i ‖ p_j) + ½ KL(p_j ‖ p_i); the first is drawn
    from the seed.
    Source: Agarwal et al., 2020, Eq. 3, with k-center greedy as in DeepCore. Cost: O(n·c·k).
    Differs: one prediction an image, not a mixture over regions; the gain of the first is 88 and
    more; probabilities below 10⁻³⁸ count as that.
    """

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability",)
    family: ClassVar[str] = "geometry"
    source: ClassVar[str] = "Agarwal et al., 2020, Eq. 3"
    cost: ClassVar[str] = "O(n·c·k)"

    def prepare(self, block: Pool) -> Pool:
        p, log = on_grid(block["proxy.probability"])
        return Pool(block.uid, {"p": p, "log": log})

    def start(self, block: Pool, seed: int, total: np.ndarray, count: int) -> np.ndarray:
        return FARTHEST + uid_uniform(seed, block.uid)

    def take(self, gain: np.ndarray, block: Pool, number: np.ndarray, chosen: Picked) -> None:
        p, log = chosen.rows["p"], chosen.rows["log"]
        for first in range(0, len(gain), _TILE):
            here = slice(first, first + _TILE)
            apart = divergences(block["p"][here], block["log"][here], p, log)
            np.minimum(gain[here], apart.min(axis=1), out=gain[here])
