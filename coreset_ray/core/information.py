"""Submodular information measures of a choice A, a query set Q and a private set P, in one form:
I_f(A; Q | P), which is mutual information where P is empty and conditional gain where Q is all."""

from typing import Literal

import numpy as np

from coreset_ray.core.directions import OfEmbeddings
from coreset_ray.core.exact import dots, grid_rows, whole_sum
from coreset_ray.core.pool import Pool
from coreset_ray.core.similarity import nearest_query, neighbor_kernel, query_kernel
from coreset_ray.core.submodular import (
    FacilityLocation,
    Function,
    GraphCut,
    LinearSums,
    Modular,
    linear_bits,
)

Form = Literal["facility_location", "facility_location_query", "graph_cut"]
_FORMS: dict[str, tuple[Form, ...]] = {
    "mutual_information": ("facility_location", "facility_location_query", "graph_cut"),
    "conditional_gain": ("facility_location", "graph_cut"),
    "conditional_mutual_information": ("facility_location",),
}


def check_measure(measure: str, form: Form) -> None:
    """`ValueError` where the measure has no such form."""
    if form not in _FORMS[measure]:
        forms = " or ".join(_FORMS[measure])
        raise ValueError(f"form={form!r}: measure {measure!r} has no such form, use {forms}")


def check_weight(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise ValueError(f"{name}={value}: expected a number from 0 up")


def information(
    form: Form,
    pool: Pool,
    *,
    query: np.ndarray | None,
    private: np.ndarray | None,
    neighbors: int,
    eta: float = 1.0,
    nu: float = 1.0,
    redundancy: float = 0.5,
) -> Function:
    """The measure as a function of A, none taken yet.

    pool: with embeddings and neighbours; query: (q, m) embeddings, None where Q is all; private:
    (w,) rows of the pool, None where P is empty. eta: how much more a row may count than the query
    is similar to it; nu: how much of the private set's similarity is taken off. Which form goes
    with which measure: `check_measure`.
    """
    if form == "graph_cut":
        if query is not None:
            return Modular(query_sums(pool["embedding"], query))
        return _graph_cut_gain(pool, private, nu, redundancy)
    rows = grid_rows(pool["embedding"])
    cap = None if query is None else eta * nearest_query(rows, grid_rows(query))
    if form == "facility_location_query":
        assert query is not None, "the caller checked"
        return FacilityLocation(query_kernel(rows, grid_rows(query), neighbors), extra=cap)
    kernel = neighbor_kernel(pool, "embeddings", neighbors)
    floor = None
    if private is not None:
        floor = nu * FacilityLocation(kernel).after(private).level
    return FacilityLocation(kernel, floor=floor, cap=cap)


def query_sums(embedding: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Σ_{i ∈ Q} (1 + cos_ij) / 2 of each row j, exact on its grid: (n, m), (q, m) → (n,)."""
    bits = linear_bits(len(query))
    total = whole_sum(grid_rows(query, bits), bits) * 2.0**-bits
    return (len(query) + dots(grid_rows(embedding, bits), total[None])[:, 0]) / 2


def _graph_cut_gain(
    pool: Pool, private: np.ndarray | None, nu: float, redundancy: float
) -> Function:
    sums, before = _linear(pool), None
    if private is not None:
        known = _linear(pool)
        for row in private:
            known.add(int(row))
        before = nu * known.near(np.arange(len(pool)))
    return GraphCut(sums, redundancy, before)


def _linear(pool: Pool) -> LinearSums:
    return LinearSums(OfEmbeddings(pool["embedding"], linear_bits(len(pool))))
