"""Log-determinant: images that span as much as possible of the space of embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from coreset_ray.core.directions import Similarity, SimilarityNeeds, directions
from coreset_ray.core.log_determinant import ROOM
from coreset_ray.core.log_determinant import LogDeterminant as Function
from coreset_ray.core.maximize import Submodular
from coreset_ray.core.pool import Pool
from coreset_ray.core.whole_set import Given


@dataclass(frozen=True)
class LogDeterminant(Submodular):
    """Keeps the directions that are least explained by those kept: the most likely set of a
    determinantal point process with as much noise as signal.

    Equation: f(S) = log det(I + scale · X_S X_Sᵀ), rows of length 1, so entries are cosines.
    Source: Iyer et al., 2021; greedy by Chen et al., 2018, lazily by Hemmi et al., 2022.
    Cost: a gain O(m) for each image kept since that row was last looked at; O(k·m) beside the
    rows. similarity: of `embeddings`, or of the last layer's `gradients`, m = c·(h + 1). scale:
    above 0; the larger, the more a direction that is new counts. Differs: the dual m × m form, so
    no n × n or n × k matrix.
    """

    similarity: Similarity = "embeddings"
    scale: float = 1.0

    needs: ClassVar[tuple[str, ...]] = SimilarityNeeds()  # type: ignore[assignment]
    family: ClassVar[str] = "submodular"
    source: ClassVar[str] = "Iyer et al., 2021; Chen et al., 2018"
    cost: ClassVar[str] = "O(n·m·k) at most"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale={self.scale}: expected a number above 0")

    def scratch(self, k: int, width: Mapping[str, int]) -> int:
        if self.similarity == "embeddings":
            m = width["embedding"]
        else:
            m = width["proxy.probability"] * (width["proxy.feature"] + 1)
        return 24 * max(k, ROOM) * m  # what holds k vectors doubles as it fills up

    def work(self, n: int, k: int) -> float:
        return float(n) * k

    def function(self, pool: Pool, given: Given) -> Function:
        return Function(directions(pool, self.similarity), self.scale).after(given.kept)
