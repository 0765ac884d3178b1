"""D2 pruning: images that many others resemble, thinned out among their own neighbours."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.greedy import Greedy, Picked
from coreset_ray.core.pool import Pool


@dataclass(frozen=True)
class D2(Greedy):
    """Message passing on the graph of nearest neighbours, without labels.

    Equation: forward s_i = 1 + Σ_{j ∈ N(i)} e^{-forward · d_ij²}; then, again and again, keep the
    highest s_k and reverse s_j ← s_j - e^{-reverse · d_kj²} · s_k for j ∈ N(k), with d the
    distance of rows of length 1, d² = 2 - 2 cos.
    Source: Maharana et al., 2023 (D2 pruning), Eq. 2 and 3, from s = 1 as in the ELFS paper.
    Cost: O(n·k) in comparisons, one round over the cluster for each image kept. neighbors: of the
    `signals.knn.k` that were found, all where there are fewer.
    """

    neighbors: int = 10
    forward: float = 1.0
    reverse: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("knn.neighbor", "knn.similarity")
    family: ClassVar[str] = "graph"
    source: ClassVar[str] = "Maharana et al., 2023, Eq. 2 and 3"
    cost: ClassVar[str] = "O(n·k) and k rounds"
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")
        for name in ("forward", "reverse"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number from 0 up")

    def start(self, block: Pool, seed: int, total: np.ndarray, count: int) -> np.ndarray:
        messages = np.exp(-self.forward * self._square(block["knn.similarity"]))
        score = np.ones(len(block))
        for message in messages.T:  # in the order of neighbours, whatever the block
            score += message
        return score

    def take(self, gain: np.ndarray, block: Pool, number: np.ndarray, chosen: Picked) -> None:
        neighbor = chosen.rows["knn.neighbor"][:, : self.neighbors]
        weight = np.exp(-self.reverse * self._square(chosen.rows["knn.similarity"]))
        place = np.searchsorted(number, neighbor).clip(max=len(number) - 1)
        here = number[place] == neighbor
        for row in range(len(neighbor)):  # one after another: subtractions do not commute
            own = here[row]
            gain[place[row, own]] -= weight[row, own] * chosen.gain[row]

    def _square(self, similarity: np.ndarray) -> np.ndarray:
        """Squared distances, float64, to the neighbours that count."""
        return 2 - 2 * similarity[..., : self.neighbors].astype(np.float64)
