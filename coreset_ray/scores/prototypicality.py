"""Prototypicality: images far from the centre of their cluster say more."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Prototypicality(PerSample):
    """Keeps images far from the centroid of their k-means cluster; `select.balance: clusters`
    keeps as many of each cluster.

    Equation: score_i = ‖z_i - c(i)‖ (1 - cosine where `signals.clusters` is spherical).
    Source: Sorscher et al., 2022, section 5 (keeping the hard, as the ELFS paper does). Cost: O(n).
    """

    needs: ClassVar[tuple[str, ...]] = ("clusters.distance",)
    family: ClassVar[str] = "geometry"
    source: ClassVar[str] = "Sorscher et al., 2022, section 5"
    cost: ClassVar[str] = "O(n)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        return block["clusters.distance"].astype(np.float64)
