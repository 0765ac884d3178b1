"""Area under the margin: hard or mislabeled images stay close to, or beyond, the boundary."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.epochs import recorded
from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Aum(PerSample):
    """Keeps images whose label was, over the whole training, least clearly the winner.

    Equation: score = -AUM, AUM = mean over epochs of p_y - max_{i≠y} p_i, in [-1, 1].
    Source: Pleiss et al., 2020; ELFS, section 3.2. Cost: O(n·t).
    Differs: the margin is of probabilities, as in ELFS, where Pleiss et al. take logits.
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.margin",)
    family: ClassVar[str] = "training dynamics"
    source: ClassVar[str] = "Identifying Mislabeled Data using the Area Under the Margin (2020)"
    cost: ClassVar[str] = "O(n·t)"
    seeded: ClassVar[bool] = False

    def score(self, block: Pool, seed: int) -> np.ndarray:
        return -recorded(block, "margin").mean(axis=1)
