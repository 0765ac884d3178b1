"""FASS: of the images a classifier is least sure of, those that represent the pool."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.directions import NEIGHBORS
from coreset_ray.core.maximize import Submodular
from coreset_ray.core.pool import Pool
from coreset_ray.core.selection import top_rows
from coreset_ray.core.similarity import neighbor_kernel
from coreset_ray.core.submodular import FacilityLocation
from coreset_ray.core.whole_set import Given


@dataclass(frozen=True)
class FASS(Submodular):
    """Filtered active submodular selection: first a filter by uncertainty, then facility location
    among what passes it.

    Equation: U = the ⌈factor · k⌉ rows of the highest entropy -Σ_c p_c log p_c;
    max f(S) over S ⊆ U, f(S) = Σ_{i ∈ V} max_{j ∈ S} max(cos_ij, 0).
    Source: Wei et al., 2015, section 5; survey, Eq. 21 to 23. Cost: O(n·(c + neighbors)).
    Differs: f counts all images V, not U alone, for the graph of nearest neighbours has few edges
    within U. factor: at least 1.
    """

    factor: float = 4.0
    neighbors: int = 50

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability", *NEIGHBORS)
    family: ClassVar[str] = "submodular"
    source: ClassVar[str] = "Wei et al., 2015, section 5"
    cost: ClassVar[str] = "O(n·(c + neighbors))"
    copies: ClassVar[int] = 7
    nested: ClassVar[bool] = False
    continues: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor={self.factor}: expected a number from 1 up")
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")

    def function(self, pool: Pool, given: Given) -> FacilityLocation:
        return FacilityLocation(neighbor_kernel(pool, "embeddings", self.neighbors)).after(
            given.kept
        )

    def candidates(self, pool: Pool, k: int, given: Given) -> np.ndarray:
        free = super().candidates(pool, k, given)
        p = pool["proxy.probability"][free].astype(np.float64)
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
        count = min(len(free), math.ceil(self.factor * k))
        return np.sort(free[top_rows(entropy, pool.uid[free], count)])
