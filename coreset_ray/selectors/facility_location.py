"""Facility location: images that between them resemble every image of the pool."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from coreset_ray.core.directions import Similarity, SimilarityNeeds, directions
from coreset_ray.core.maximize import Submodular
from coreset_ray.core.pool import Pool
from coreset_ray.core.similarity import Dense, Kernel, KernelName, neighbor_kernel
from coreset_ray.core.submodular import FacilityLocation as Function
from coreset_ray.core.whole_set import Given


@dataclass(frozen=True)
class FacilityLocation(Submodular):
    """Keeps what best represents the pool, each image by the most similar one that is kept.

    Equation: f(S) = Σ_{i ∈ V} max_{j ∈ S} max(cos_ij, 0), greedily, at least 1 - 1/e of the best.
    Source: DeepCore, section 2.2.7; survey, Eq. 18; Wei et al., 2015. Cost: a gain O(neighbors);
    of the dense kernel O(n·m), O(n²·m) for the first. similarity: cosines of `embeddings`, or of
    the last layer's `gradients`, O(n²·(c + h)) to find neighbours. Differs: kernel `neighbors`
    holds similarities among nearest neighbours alone, of embeddings `neighbors` of the
    `signals.knn.k` that were found, and takes all others as 0; `dense` computes all, for small
    pools.
    """

    similarity: Similarity = "embeddings"
    kernel: KernelName = "neighbors"
    neighbors: int = 50

    needs: ClassVar[tuple[str, ...]] = SimilarityNeeds()  # type: ignore[assignment]
    family: ClassVar[str] = "submodular"
    source: ClassVar[str] = "Wei et al., 2015; survey, Eq. 18"
    cost: ClassVar[str] = "O(n·neighbors) and O(neighbors) a gain"
    copies: ClassVar[int] = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")

    def beside(self, width: Mapping[str, int]) -> int:
        return 0 if self.similarity == "embeddings" else 80 * self.neighbors

    def work(self, n: int, k: int) -> float:
        found = self.similarity == "embeddings" and self.kernel == "neighbors"
        return float(n) if found else float(n) * n

    def function(self, pool: Pool, given: Given) -> Function:
        if self.kernel == "dense":
            kernel: Kernel = Dense(directions(pool, self.similarity))
        else:
            kernel = neighbor_kernel(pool, self.similarity, self.neighbors)
        return Function(kernel).after(given.kept)
