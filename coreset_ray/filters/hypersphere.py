"""Hypersphere: images outside a ball around the pool's mean are left out."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.exact import dots, grid_rows, mean_row, whole_sum
from coreset_ray.core.filter import Filter, farthest
from coreset_ray.core.nearest import squares
from coreset_ray.core.pool import Pool
from coreset_ray.core.rule import check_share, hardest


@dataclass(frozen=True)
class Hypersphere(Filter):
    """Drops the share of images farthest from the mean of all.

    Equation: the ⌊share · n⌋ largest ‖z_i - μ‖², with z rows of length 1 and μ their mean.
    Source: survey VI-C; Ruff et al., 2018 (deep SVDD: the ball's centre is the mean embedding).
    Cost: O(n·m). Differs: no network is trained; embeddings are taken as they are. Of equal
    distances the largest uids go.
    """

    share: float = 0.05

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    family: ClassVar[str] = "filter"
    source: ClassVar[str] = "Ruff et al., 2018"
    cost: ClassVar[str] = "O(n·m)"

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def drop(self, pool: Pool, kept: np.ndarray) -> np.ndarray:
        rows = grid_rows(pool["embedding"])
        mean = mean_row(whole_sum(rows), len(rows))
        return farthest(
            squares(rows) - 2 * dots(rows, mean[None])[:, 0], hardest(self.share, len(rows))
        )
