"""SIMILAR: a next round of labelling, told by the images that are labelled already."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from coreset_ray.core.directions import NEIGHBORS
from coreset_ray.core.information import Form, check_measure, check_weight, information
from coreset_ray.core.maximize import Submodular
from coreset_ray.core.pool import Pool
from coreset_ray.core.submodular import Function
from coreset_ray.core.whole_set import Given

Measure = Literal["conditional_gain", "mutual_information", "conditional_mutual_information"]


class Needs:
    """The columns that it needs: labels, of images kept already, only where some are wanted."""

    def __get__(self, method: "SIMILAR | None", kind: type) -> tuple[str, ...]:
        plain = method is None or method.measure == "conditional_gain"
        return ("embedding", *NEIGHBORS, *(() if plain else ("pseudo_labels.label",)))


@dataclass(frozen=True)
class SIMILAR(Submodular):
    """Active learning by submodular information of what is kept, A, and the images that are kept
    already, L: against redundancy, for rare classes, or past what is off topic.

    Equation: against redundancy, `conditional_gain` given P = L: form `facility_location` (FLCG)
    Σ_{i ∈ V} max(max_{j ∈ A} s_ij - nu · max_{j ∈ P} s_ij, 0); `graph_cut` (GCCG)
    Σ_{i ∈ V} Σ_{j ∈ A} t_ij - redundancy · (Σ_{i, j ∈ A} t_ij + 2 nu · Σ_{i ∈ P} Σ_{j ∈ A} t_ij),
    t = (1 + cos) / 2. For rare classes, `mutual_information` with Q, the images of L whose label is
    one of `wanted`, in the forms of `prism`. Past what is off topic,
    `conditional_mutual_information` with that Q given P, the rest of L.
    Source: Kothawade et al., 2021, Table 1; survey, Eq. 28 to 30. Cost: O(n·q·m) and a gain
    O(neighbors). Differs: cosines of embeddings, not of gradients; s as in `prism`; with nothing
    kept already, the gain is that of facility location or graph cut.
    """

    measure: Measure = "conditional_gain"
    form: Form = "facility_location"
    wanted: tuple[int, ...] = ()
    neighbors: int = 50
    eta: float = 1.0
    nu: float = 1.0
    redundancy: float = 0.5

    needs: ClassVar[tuple[str, ...]] = Needs()  # type: ignore[assignment]
    family: ClassVar[str] = "submodular"
    source: ClassVar[str] = "Kothawade et al., 2021, Table 1"
    cost: ClassVar[str] = "O(n·q·m) and O(neighbors) a gain"
    copies: ClassVar[int] = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_measure(self.measure, self.form)
        if (self.measure == "conditional_gain") != (not self.wanted):
            raise ValueError(
                f"wanted={self.wanted}: measure {self.measure!r} asks for "
                f"{'no classes' if self.wanted else 'the classes that are wanted'}"
            )
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")
        for name in ("eta", "nu", "redundancy"):
            check_weight(name, getattr(self, name))

    def function(self, pool: Pool, given: Given) -> Function:
        query, private = None, given.kept
        if self.measure != "conditional_gain":
            hit = np.isin(pool["pseudo_labels.label"][given.kept], self.wanted)
            if not hit.any():
                raise ValueError(
                    f"wanted={self.wanted}: none of the {len(hit)} images kept already has such a "
                    "label: keep some that have"
                )
            query, private = pool["embedding"][given.kept[hit]], given.kept[~hit]
        return information(
            *(self.form, pool),
            query=query,
            private=None if self.measure == "mutual_information" else private,
            neighbors=self.neighbors,
            eta=self.eta,
            nu=self.nu,
            redundancy=self.redundancy,
        )
