"""Herding: images whose mean stays as near to the pool's as it can be, at every length."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.exact import dots, mean_row
from coreset_ray.core.greedy import Greedy, Picked
from coreset_ray.core.pool import Pool
from coreset_ray.core.short_rows import SHORT, pull_away, short_rows

_MEAN = 24  # bits behind the point of the mean


@dataclass(frozen=True)
class Herding(Greedy):
    """Keeps the mean of what is kept close to the pool's: ‖mean - μ‖ falls as 1/k.

    Equation: next = argmax_i ⟨w, φ_i⟩, w ← w + μ - φ_next from w = μ, with φ rows of length 1 and
    μ their mean.
    Source: Welling, 2009; Chen et al., 2010 (kernel herding, the rate).
    Cost: O(n·m·k), one pass over rows of 16-bit numbers for each image kept. Differs: no image is
    chosen twice, where herding of a distribution may; rows are rounded to 2^-14.
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    family: ClassVar[str] = "geometry"
    source: ClassVar[str] = "Welling, 2009"
    cost: ClassVar[str] = "O(n·m·k)"
    seeded: ClassVar[bool] = False
    falls: ClassVar[bool] = False

    def prepare(self, block: Pool) -> Pool:
        return Pool(block.uid, {"row": short_rows(block["embedding"])})

    def survey(self, block: Pool) -> np.ndarray:
        return block["row"].sum(axis=0, dtype=np.int64)

    def inform(self, block: Pool, total: np.ndarray, count: int) -> Pool:
        mean = mean_row(total * 2 ** (_MEAN - SHORT), count, _MEAN)
        pull = dots(block["row"], mean[None])[:, 0] * 2.0**-SHORT
        return Pool(block.uid, {**block.columns, "pull": pull})

    def start(self, block: Pool, seed: int, total: np.ndarray, count: int) -> np.ndarray:
        return block["pull"].copy()

    def take(self, gain: np.ndarray, block: Pool, number: np.ndarray, chosen: Picked) -> None:
        for row in chosen.rows["row"]:
            pull_away(gain, block["pull"], block["row"], row)
