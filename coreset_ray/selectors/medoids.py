"""k-means medoids: one image for each of as many clusters, the member nearest its centre."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.pool import Pool
from coreset_ray.core.selection import Selection
from coreset_ray.core.spherical import cluster, standard_rows
from coreset_ray.core.whole_set import Given, WholeSet

_FLAT = 64  # clusters that are sought at once; more are sought in cells
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Medoids(WholeSet):
    """Keeps what is typical of each part of the pool; the largest cluster's image comes first.

    Equation: k-means by direction on standardised embeddings into k clusters; of each the row
    with the largest cosine to its centre. Above 64 clusters in two levels: √k cells, each split
    into as many clusters as its size earns (Sainte-Laguë's quotients).
    Source: Hacohen et al., 2022 (typicality by clusters); Vo et al., 2024 (hierarchical k-means).
    Cost: O(n·m·√k·iterations). Differs: rows kept already are centres that stay, and what lies
    nearest to them is served. Where fewer rows differ than are asked for, the rest are those
    farthest from their centres.
    """

    iterations: int = 10

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    family: ClassVar[str] = "geometry"
    source: ClassVar[str] = "Vo et al., 2024; Hacohen et al., 2022"
    cost: ClassVar[str] = "O(n·m·√k·iterations)"
    nested: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: expected at least 1")

    def work(self, n: int, k: int) -> float:
        return n * math.sqrt(k)

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        rows = standard_rows(pool["embedding"])
        kept = np.isin(np.arange(len(pool)), given.kept)
        cell = np.zeros(len(pool), np.int64)
        if k > _FLAT:
            cells = int(np.ceil(np.sqrt(k)))
            cell = cluster(rows, pool.uid, cells, seed, iterations=self.iterations, fixed=_NONE)[1]
        sizes, served = np.bincount(cell), np.bincount(cell[kept], minlength=cell.max() + 1)
        found, size = [_NONE], [np.empty(0)]
        for c, count in enumerate(earned(k, sizes, served)):
            if count:
                own = np.flatnonzero(cell == c)
                chosen, members = self._split(rows[own], pool.uid[own], kept[own], count, seed)
                found.append(own[chosen])
                size.append(members)
        chosen, members = np.concatenate(found), np.concatenate(size)
        order = np.lexsort((chosen, -members))
        return Selection(chosen[order], members[order], np.ones(k))

    def _split(
        self, rows: np.ndarray, uid: np.ndarray, kept: np.ndarray, count: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """So many rows of a cell, none kept, and the sizes of their clusters, 0 beside one."""
        fixed = np.flatnonzero(kept)
        _, which, cosine = cluster(rows, uid, count, seed, iterations=self.iterations, fixed=fixed)
        sizes = np.bincount(which, minlength=len(fixed) + count)
        free = np.flatnonzero(~kept & (which >= len(fixed)))
        best = free[np.lexsort((free, -cosine[free], which[free]))]
        best = best[np.unique(which[best], return_index=True)[1]]
        rest = np.setdiff1d(np.flatnonzero(~kept), best)
        rest = rest[np.lexsort((rest, cosine[rest]))][: count - len(best)]
        return np.append(best, rest), np.append(sizes[which[best]], np.zeros(len(rest)))


def earned(k: int, sizes: np.ndarray, served: np.ndarray) -> np.ndarray:
    """k shared between cells in proportion to their sizes, (c,) int64: again and again one to the
    cell with the most rows for each that it has, and half a one more; ties to the first. served:
    how many each has already."""
    share = np.zeros(len(sizes), np.int64)
    for _ in range(k):
        quotient = sizes / (share + served + 0.5)
        quotient[share + served == sizes] = -1
        share[np.argmax(quotient)] += 1
    return share
