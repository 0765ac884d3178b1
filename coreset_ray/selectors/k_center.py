"""k-center greedy: the point farthest from all that is kept, again and again."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.exact import grid_rows
from coreset_ray.core.greedy import Greedy, Picked
from coreset_ray.core.nearest import lower, squares
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import uid_uniform

_FARTHEST = 4.0  # the largest squared distance of two rows of length 1


@dataclass(frozen=True)
class KCenter(Greedy):
    """Covers the pool with balls of the smallest radius around what is kept, within a factor 2.

    Equation: next = argmax_i min_{j ∈ S} d_ij², with d the distance of rows of length 1,
    d² = 2 - 2 cos; the first is drawn from the seed.
    Source: Sener and Savarese, 2018, Algorithm 1; Gonzalez, 1985 (2-approximation).
    Cost: O(n·m·k), in products of matrices. Differs: distance by direction, not of raw features;
    the gain of the first is 4 and more.
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    family: ClassVar[str] = "geometry"
    source: ClassVar[str] = "Sener and Savarese, 2018, Algorithm 1"
    cost: ClassVar[str] = "O(n·m·k)"

    def prepare(self, block: Pool) -> Pool:
        rows = grid_rows(block["embedding"])
        return Pool(block.uid, {"row": rows, "square": squares(rows)})

    def start(self, block: Pool, seed: int, total: np.ndarray, count: int) -> np.ndarray:
        return _FARTHEST + uid_uniform(seed, block.uid)

    def take(self, gain: np.ndarray, block: Pool, number: np.ndarray, chosen: Picked) -> None:
        lower(gain, block["row"], block["square"], chosen.rows["row"])
