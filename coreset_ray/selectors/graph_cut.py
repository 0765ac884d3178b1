"""Graph cut: images that resemble the pool, and not one another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from coreset_ray.core.directions import Similarity, SimilarityNeeds, directions
from coreset_ray.core.maximize import Submodular
from coreset_ray.core.pool import Pool
from coreset_ray.core.similarity import KernelName, neighbor_kernel
from coreset_ray.core.submodular import GraphCut as Function
from coreset_ray.core.submodular import LinearSums, NeighborSums, Sums, linear_bits
from coreset_ray.core.whole_set import Given


@dataclass(frozen=True)
class GraphCut(Submodular):
    """Keeps what is similar to the whole pool and cuts off what is similar among itself.

    Equation: f(S) = Σ_{i ∈ V} Σ_{j ∈ S} s_ij - redundancy · Σ_{i, j ∈ S} s_ij.
    Source: DeepCore, section 2.2.7; survey, Eq. 19. Cost: a gain O(1), of the dense kernel O(m).
    redundancy: monotone, with greedy choice worth 1 - 1/e of the best, up to 1/2. similarity: of
    `embeddings`, or of the last layer's `gradients`, O(n²·(c + h)) to find neighbours. Differs:
    kernel `neighbors` has s = max(cos, 0) among `neighbors` nearest neighbours and 0 elsewhere;
    `dense` has s = (1 + cos) / 2 of all pairs in a linear form, without forming any.
    """

    similarity: Similarity = "embeddings"
    kernel: KernelName = "neighbors"
    neighbors: int = 50
    redundancy: float = 0.5

    needs: ClassVar[tuple[str, ...]] = SimilarityNeeds()  # type: ignore[assignment]
    family: ClassVar[str] = "submodular"
    source: ClassVar[str] = "Iyer et al., 2021; survey, Eq. 19"
    cost: ClassVar[str] = "O(n·neighbors), or O(n·m) and O(m) a gain"
    copies: ClassVar[int] = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")
        if not 0 <= self.redundancy < float("inf"):
            raise ValueError(f"redundancy={self.redundancy}: expected a number from 0 up")

    def beside(self, width: Mapping[str, int]) -> int:
        return 0 if self.similarity == "embeddings" else 80 * self.neighbors

    def work(self, n: int, k: int) -> float:
        found = self.similarity == "embeddings" or self.kernel == "dense"
        return float(n) if found else float(n) * n

    def function(self, pool: Pool, given: Given) -> Function:
        if self.kernel == "dense":
            sums: Sums = LinearSums(directions(pool, self.similarity, linear_bits(len(pool))))
        else:
            sums = NeighborSums(neighbor_kernel(pool, self.similarity, self.neighbors))
        return Function(sums, self.redundancy).after(given.kept)
