"""ELFS: difficulty by a classifier that learns pseudo-labels, and double-end pruning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from coreset_ray.core.method import PerSample
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class Elfs(PerSample):
    """The area under the margin of a classifier trained on pseudo-labels, as difficulty; selects
    by double-end pruning with a hard rate found on pseudo-labels.

    Equation: score_i = -1/T Σ_t (p_t(ŷ_i) - max_{c ≠ ŷ_i} p_t(c)), ŷ the pseudo-label.
    Source: ELFS sections 3.2, 4.2 and 4.3 (other difficulties: the methods on `dynamics`, with
    `select.method: double_end`). Cost: O(n·t), after the signals.
    """

    needs: ClassVar[tuple[str, ...]] = ("dynamics.margin",)
    family: ClassVar[str] = "training dynamics"
    source: ClassVar[str] = "ELFS sections 3.2, 4.2 and 4.3"
    cost: ClassVar[str] = "O(n·t) after clustering and training"
    seeded: ClassVar[bool] = False
    selector: ClassVar[tuple[str, Mapping[str, Any]]] = ("double_end", {"beta": "auto"})

    def score(self, block: Pool, seed: int) -> np.ndarray:
        return -block["dynamics.margin"].mean(axis=1, dtype=np.float64)
