"""GradMatch: few images whose weighted gradients add up to that of all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.gradients import gradients_of
from coreset_ray.core.pool import Pool
from coreset_ray.core.pursuit import Pursuit
from coreset_ray.core.selection import Selection
from coreset_ray.core.whole_set import Given, WholeSet

_ONE_BY_ONE = 100  # of a step's k² numbers take the time of one row's products, about


@dataclass(frozen=True)
class GradMatch(WholeSet):
    """Orthogonal matching pursuit on the mean gradient, with weights that are not negative.

    Equation: E(w) = ‖mean_i g_i - Σ_{j ∈ S} w_j g_j‖² + ridge · ‖w‖²; next = argmax_i ⟨g_i, what is
    left of the mean⟩, then w = argmin_{w ≥ 0} E(w) anew; E never rises. g: the last layer's.
    Source: Killamsetty et al., 2021 (GradMatch), Eq. 5 and Algorithm 2.
    Cost: O(n·c·h·k + k³) and O(k²) memory: 16 · k² bytes, so that large budgets ask for
    `select.balance`. Differs: w ≥ 0 after each choice, not at the end alone; the
    weights are n · w, the number of images each stands for; a choice may have weight 0.
    """

    ridge: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability", "proxy.feature", "proxy.label")
    family: ClassVar[str] = "gradient"
    source: ClassVar[str] = "Killamsetty et al., 2021 (GradMatch), Algorithm 2"
    cost: ClassVar[str] = "O(n·c·h·k + k³)"
    copies: ClassVar[int] = 5
    seeded: ClassVar[bool] = False
    weighs: ClassVar[bool] = True
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.ridge < np.inf:
            raise ValueError(f"ridge={self.ridge}: expected a number above 0")

    def beside(self, width: Mapping[str, int]) -> int:
        return 40 * width["proxy.probability"]

    def scratch(self, k: int, width: Mapping[str, int]) -> int:
        return 16 * k * k

    def work(self, n: int, k: int) -> float:
        return float(n) * k + float(k) ** 3 / _ONE_BY_ONE

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        of = gradients_of(pool, pool["proxy.label"])
        n, before = len(pool), len(given.kept)
        mean = of.total(np.full(n, 1 / n))
        toward, left = of.along(mean), mean
        rows, gains = np.concatenate([given.kept, np.zeros(k, np.int64)]), np.zeros(before + k)
        pursuit, free, weight = Pursuit(before + k, self.ridge), np.ones(n, bool), np.zeros(0)
        free[given.kept] = False
        for i in range(before + k):
            if i >= before:
                gain = np.where(free, of.along(left), -np.inf)
                rows[i] = row = int(gain.argmax())  # rows lie in the order of uid
                gains[i], free[row] = gain[row], False
            products = of.products_with(rows[: i + 1], rows[i])
            weight = pursuit.add(products, float(toward[rows[i]]))
            used = np.flatnonzero(weight)
            left = mean - of.total(weight[used], rows[used])
        return Selection(rows[before:], gains[before:], n * weight[before:])
