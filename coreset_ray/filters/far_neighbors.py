"""Far neighbours: images that lie alone are left out."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.filter import Filter, farthest
from coreset_ray.core.pool import Pool
from coreset_ray.core.rule import check_share, hardest


@dataclass(frozen=True)
class FarNeighbors(Filter):
    """Drops the share of images with the largest distance to a nearest neighbour of a given rank.

    Equation: the ⌊share · n⌋ largest d_i = 1 - cos(i, its `neighbors`-th nearest neighbour).
    Source: survey VI-C; Ramaswamy et al., 2000 (outliers by the k-th neighbour).
    Cost: O(n log n). neighbors: of the `signals.knn.k` that were found, the last where there are
    fewer. Of equal distances the largest uids go.
    """

    share: float = 0.05
    neighbors: int = 10

    needs: ClassVar[tuple[str, ...]] = ("knn.similarity",)
    family: ClassVar[str] = "filter"
    source: ClassVar[str] = "Ramaswamy et al., 2000"
    cost: ClassVar[str] = "O(n log n)"

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")

    def drop(self, pool: Pool, kept: np.ndarray) -> np.ndarray:
        similarity = pool["knn.similarity"][:, : self.neighbors]
        if not similarity.shape[1]:  # a pool of one image
            return np.zeros(len(pool), bool)
        return farthest(1 - similarity[:, -1].astype(np.float64), hardest(self.share, len(pool)))
