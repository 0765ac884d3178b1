"""CRAIG: medoids of the gradients of each class, each with the number of images it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.covering import cover
from coreset_ray.core.gradient_distance import nearest_alike, served_by
from coreset_ray.core.gradients import gradients_of
from coreset_ray.core.pool import Pool
from coreset_ray.core.selection import Selection
from coreset_ray.core.whole_set import Given, WholeSet

_SCALE = 2.0**30  # similarities are whole numbers of so many parts


@dataclass(frozen=True)
class Craig(WholeSet):
    """Gradients near enough to all others that a weighted sum of them stands for the whole.

    Equation: greedy for f(S) = Σ_i max_{j ∈ S} (D - ‖g_i - g_j‖) over j of the label of i, with g
    the last layer's gradients; weight_j = #{i : j is the nearest chosen of i's label}.
    Source: Mirzasoleiman et al., 2020 (CRAIG), Eq. 11 and Algorithm 1.
    Cost: O(n²·(c + h)) over the number of labels, in products of matrices, and O(n·neighbors)
    memory. Differs: only the `neighbors` nearest of a row can serve it while choosing, and D is the
    largest distance among these; with as many neighbours as rows both are the paper's. Weights are
    exact: of all rows, n together beside those that serve images kept already.
    """

    neighbors: int = 100

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability", "proxy.feature", "proxy.label")
    family: ClassVar[str] = "gradient"
    source: ClassVar[str] = "Mirzasoleiman et al., 2020, Algorithm 1"
    cost: ClassVar[str] = "O(n²·(c + h) / c)"
    copies: ClassVar[int] = 8
    seeded: ClassVar[bool] = False
    weighs: ClassVar[bool] = True
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")

    def beside(self, width: Mapping[str, int]) -> int:
        return 16 * self.neighbors

    def work(self, n: int, k: int) -> float:
        return float(n) * n

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        label = pool["proxy.label"]
        of = gradients_of(pool, label)
        neighbor, distance = nearest_alike(of, label, self.neighbors)
        far = float(distance.max(initial=0))
        worth = np.rint((1 - distance / (far or 1.0)) * _SCALE).astype(np.int32)
        rows, gains = cover(neighbor, worth, given.kept, k)
        weight = served_by(of, label, np.concatenate([given.kept, rows]))[rows]
        return Selection(rows, gains * (far / _SCALE), weight.astype(np.float64))
