"""Near-duplicates: of images that are nearly the same, one stays."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.duplicates import angles, repeats
from coreset_ray.core.filter import Filter
from coreset_ray.core.pool import Pool

_SLACK = 1e-6  # of a cosine: angles decide


@dataclass(frozen=True)
class NearDuplicates(Filter):
    """Drops an image that resembles one which stays, of the same cluster and a smaller uid.

    Equation: i goes where cos(i, j) ≥ threshold for a j of its cluster that stays, uid_j < uid_i.
    Source: Abbas et al., 2023 (SemDeDup).
    Cost: O(n·k) of the nearest neighbours. Differs: pairs are those of `signals.knn`, either one
    among the other's neighbours, and those that follow from them: angles along a path of pairs that
    add up to no more than the threshold's, so that one stays of however many copies. Images chosen
    already stay, then the smallest uid, not the row farthest from the centroid.
    """

    threshold: float = 0.95

    needs: ClassVar[tuple[str, ...]] = ("knn.neighbor", "knn.similarity", "clusters.cluster")
    family: ClassVar[str] = "filter"
    source: ClassVar[str] = "Abbas et al., 2023 (SemDeDup)"
    cost: ClassVar[str] = "O(n·k)"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: expected a cosine above 0, at most 1")

    def drop(self, pool: Pool, kept: np.ndarray) -> np.ndarray:
        neighbor, cell = pool["knn.neighbor"], pool["clusters.cluster"]
        cosine, limit = pool["knn.similarity"], int(angles(self.threshold))
        row, rank = np.nonzero((cosine >= self.threshold - _SLACK) & (neighbor >= 0))
        other, angle = neighbor[row, rank], angles(cosine[row, rank])
        alike = (angle <= limit) & (cell[row] == cell[other])
        return repeats(row[alike], other[alike], angle[alike], limit, kept, len(pool))
