"""Near-duplicates: of images that are nearly the same, one stays."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.duplicates import repeats
from coreset_ray.core.filter import Filter
from coreset_ray.core.pool import Pool

_SAME = 1 - 2.0**-20  # cosine of rows that are the same, whose lengths are rounded to float32


@dataclass(frozen=True)
class NearDuplicates(Filter):
    """Drops an image that resembles one which stays, of the same cluster and a smaller uid.

    Equation: i goes where cos(i, j) ≥ threshold for a j of its cluster that stays, uid_j < uid_i.
    Source: Abbas et al., 2023 (SemDeDup).
    Cost: O(n·k) of the nearest neighbours. Differs: pairs are those of `signals.knn`, either one
    among the other's neighbours; the smallest uid stays, not the row farthest from the centroid.
    """

    threshold: float = 0.95

    needs: ClassVar[tuple[str, ...]] = ("knn.neighbor", "knn.similarity", "clusters.cluster")
    family: ClassVar[str] = "filter"
    source: ClassVar[str] = "Abbas et al., 2023 (SemDeDup)"
    cost: ClassVar[str] = "O(n·k)"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: expected a cosine above 0, at most 1")

    def drop(self, pool: Pool) -> np.ndarray:
        neighbor, cell = pool["knn.neighbor"], pool["clusters.cluster"]
        least = min(self.threshold, _SAME)
        row, rank = np.nonzero((pool["knn.similarity"] >= least) & (neighbor >= 0))
        other = neighbor[row, rank]
        alike = cell[row] == cell[other]
        return repeats(row[alike], other[alike].astype(np.int64), len(pool))
