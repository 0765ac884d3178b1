"""PRISM: images that resemble a target set, and not those that are known already."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coreset_ray.core.directions import NEIGHBORS
from coreset_ray.core.information import Form, check_measure, check_weight, information
from coreset_ray.core.maximize import Submodular
from coreset_ray.core.pool import Pool
from coreset_ray.core.submodular import Function
from coreset_ray.core.whole_set import Given


@dataclass(frozen=True)
class PRISM(Submodular):
    """Targeted selection by submodular information of what is kept, A, and the target set Q.

    Equation: of `mutual_information`, form `facility_location` (FLVMI)
    Σ_{i ∈ V} min(max_{j ∈ A} s_ij, eta · max_{j ∈ Q} s_ij); `facility_location_query` (FLQMI)
    Σ_{i ∈ Q} max_{j ∈ A} s_ij + eta · Σ_{j ∈ A} max_{i ∈ Q} s_ij; `graph_cut` (GCMI)
    Σ_{j ∈ A} Σ_{i ∈ Q} (1 + cos_ij) / 2. Of `conditional_mutual_information` (FLCMI), given the
    images P that are kept already,
    Σ_{i ∈ V} max(min(max_{j ∈ A} s_ij, eta · max_{j ∈ Q} s_ij) - nu · max_{j ∈ P} s_ij, 0).
    Source: Kothawade et al., 2022, Table 1; survey, Eq. 24 to 27. Cost: O(n·q·m) and a gain
    O(neighbors). Differs: s = max(cos, 0), to the target set in full, among the pool of nearest
    neighbours alone, in FLQMI of the `neighbors` rows nearest to each target. Without a
    condition, images kept already count as chosen. Without a target set: `similar`.
    """

    measure: Literal["mutual_information", "conditional_mutual_information"] = "mutual_information"
    form: Form = "facility_location"
    neighbors: int = 50
    eta: float = 1.0
    nu: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("embedding", *NEIGHBORS)
    family: ClassVar[str] = "submodular"
    source: ClassVar[str] = "Kothawade et al., 2022, Table 1"
    cost: ClassVar[str] = "O(n·q·m) and O(neighbors) a gain"
    copies: ClassVar[int] = 6
    targeted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_measure(self.measure, self.form)
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")
        check_weight("eta", self.eta)
        check_weight("nu", self.nu)

    def function(self, pool: Pool, given: Given) -> Function:
        condition = self.measure == "conditional_mutual_information"
        function = information(
            *(self.form, pool),
            query=given.target,
            private=given.kept if condition else None,
            neighbors=self.neighbors,
            eta=self.eta,
            nu=self.nu,
        )
        return function if condition else function.after(given.kept)
