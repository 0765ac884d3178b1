"""k-center greedy: the point farthest from all that is kept, again and again."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.exact import dots, unit_rows
from coreset_ray.core.greedy import Greedy, Picked
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
    source: ClassVar[str] = "Sener and Savarese, 2018, Algorithm 1"
    cost: ClassVar[str] = "O(n·m·k)"

    def prepare(self, block: Pool) -> Pool:
        return Pool(block.uid, {"embedding": unit_rows(block["embedding"])})

    def start(self, block: Pool, seed: int, total: np.ndarray, count: int) -> np.ndarray:
        return _FARTHEST + uid_uniform(seed, block.uid)

    def take(self, gain: np.ndarray, block: Pool, number: np.ndarray, chosen: Picked) -> None:
        rows, centers = block["embedding"], chosen.rows["embedding"]
        nearest = dots(rows, centers)
        nearest *= -2
        nearest += _squares(centers)
        np.minimum(gain, np.maximum(nearest.min(axis=1) + _squares(rows), 0), out=gain)


def _squares(rows: np.ndarray) -> np.ndarray:
    """Exact squared lengths, (n,) float64."""
    return np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
