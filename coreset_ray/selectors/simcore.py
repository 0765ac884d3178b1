"""SimCore: images of the pool that lie nearest to the clusters of a target set."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.exact import dots, grid_rows
from coreset_ray.core.nearest import nearest
from coreset_ray.core.pool import Pool, pool_of
from coreset_ray.core.selection import Selection, top_rows
from coreset_ray.core.spherical import cluster
from coreset_ray.core.whole_set import Given, WholeSet

_CENTERS = 16  # compared with all rows at a time


@dataclass(frozen=True)
class SimCore(WholeSet):
    """Finds what a small target set resembles in a large pool.

    Equation: k-means by direction of the target into `clusters` centres; then, for the centres in
    turn, next = argmax_i cos(z_i, centre) of the rows that are left.
    Source: Kim et al., 2023 (SimCore); survey V-C.
    Cost: O(n·m·clusters + k·clusters). Differs: a budget in place of their stop by similarity; a
    row kept already serves the centre nearest to it, and the centre served least comes next.
    """

    clusters: int = 100
    iterations: int = 25

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    family: ClassVar[str] = "geometry"
    source: ClassVar[str] = "Kim et al., 2023"
    cost: ClassVar[str] = "O(n·m·clusters)"
    copies: ClassVar[int] = 6
    targeted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("clusters", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        assert given.target is not None, "the runner checked"
        rows, centers = grid_rows(pool["embedding"]), self._centers(given.target, seed)
        free = np.setdiff1d(np.arange(len(pool)), given.kept)
        served = np.zeros(len(centers), np.int64)
        if len(given.kept):
            served += np.bincount(nearest(rows[given.kept], centers)[0], minlength=len(centers))
        queues = _queues(rows[free], pool.uid[free], centers, k)
        chosen, gains = np.empty(k, np.int64), np.empty(k)
        taken, at = np.zeros(len(free), bool), np.zeros(len(centers), np.int64)
        for turn in range(k):
            c = int(np.argmin(served))
            order, cosine = queues[c]
            while taken[order[at[c]]]:
                at[c] += 1
            row = order[at[c]]
            chosen[turn], gains[turn], taken[row] = free[row], cosine[at[c]], True
            served[c] += 1
        return Selection(chosen, gains, np.ones(k))

    def _centers(self, target: np.ndarray, seed: int) -> np.ndarray:
        """Of the target's clusters, (c, m) grid rows."""
        rows, uid = grid_rows(target), pool_of(target).uid
        fixed = np.empty(0, np.int64)
        count = min(self.clusters, len(rows))
        return cluster(rows, uid, count, seed, iterations=self.iterations, fixed=fixed)[0]


def _queues(
    rows: np.ndarray, uid: np.ndarray, centers: np.ndarray, k: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each centre the k rows nearest to it, nearest first, and their cosines."""
    found = []
    for first in range(0, len(centers), _CENTERS):
        for cosine in dots(rows, centers[first : first + _CENTERS]).T:
            order = top_rows(cosine, uid, k)
            found.append((order, cosine[order]))
    return found
