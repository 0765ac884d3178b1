"""BlindCS: rewards what covers the embedding space, penalises what its neighbours cover."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from coreset_ray.core.draws import Slices, cover_and_penalise, slices_of
from coreset_ray.core.method import Sampled
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import below, draw_words, uid_uniform, unit_interval

_UNIT = 2**32  # redundancy is counted in units of 2⁻³²: sums are exact in any order
_MOST_DRAWS = 2**31 - 1  # one row may collect a whole unit a draw, and the sum stays below 2⁶³
_CHUNK = 8192  # draws whose random numbers are made at once


@dataclass(frozen=True)
class BlindCS(Sampled):
    """Keeps images that often lie nearest to random points of the embedding space, and seldom
    beside another that does.

    Equation: each draw takes `dims` distinct dimensions (Eq. 4), a point of the product of
    triangular distributions (min, median, max) over them (Eq. 3), the image k nearest to it in
    L1 (Eq. 5), adds 1 to k's score (Eq. 6), and takes 1 in all from the `neighbors` images
    nearest to k, shared in proportion to distance^-exponent (Eq. 7, 8). Score = sum (Eq. 9).
    Source: Blind Coreset Selection, §5. Cost: O(t·n) time, O(n·m) memory.
    Differs: randomness is a function of (seed, draw); constant dimensions are never drawn;
    equal distances to the point go to the smallest uid, and images that tie at the distance of
    the last neighbour all count as neighbours, so row order never matters; where images coincide
    with k in a slice, they share the whole penalty evenly (the limit of Eq. 7).
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    source: ClassVar[str] = "Blind Coreset Selection (BlindCS, later ZCore), Eq. 3-10"
    cost: ClassVar[str] = "O(t·n) time, O(n·m) memory"

    draws: int = 1_000_000
    dims: int = 2
    neighbors: int = 1000
    exponent: float = 4.0
    tie_break: Literal["uniform", "none"] = "uniform"

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= _MOST_DRAWS:
            raise ValueError(f"draws={self.draws}: expected 1 to {_MOST_DRAWS}")
        if self.dims < 1:
            raise ValueError(f"dims={self.dims}: expected at least 1")
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors}: expected at least 1")
        if not (math.isfinite(self.exponent) and self.exponent >= 0):
            raise ValueError(f"exponent={self.exponent}: expected a finite number ≥ 0")
        if self.tie_break not in ("uniform", "none"):
            raise ValueError(f"tie_break={self.tie_break!r}: expected 'uniform' or 'none'")

    def prepare(self, pool: Pool) -> Slices:
        slices = slices_of(pool["embedding"])
        live = len(slices.column)
        if live == 0:
            warnings.warn(
                f"all {len(pool)} images have one and the same embedding: every score is 0",
                stacklevel=2,
            )
        elif live < self.dims:
            raise ValueError(
                f"dims={self.dims}: only {live} of the {live + len(slices.constant)} embedding "
                f"dimensions vary over the pool; set dims to at most {live}"
            )
        return slices

    def tally(self, prepared: Slices, seed: int, first: int, last: int) -> np.ndarray:
        """(2, n) int64: coverage in ones, redundancy in units of 2⁻³²."""
        total = np.zeros((2, prepared.column.shape[1]), np.int64)
        if len(prepared.column) == 0:
            return total
        for start in range(first, last, _CHUNK):
            count = min(_CHUNK, last - start)
            dims, points = self._points(prepared, seed, start, count)
            cover_and_penalise(
                prepared.column, dims, points, self.neighbors, float(self.exponent), _UNIT, total
            )
        return total

    def columns(self, total: np.ndarray) -> dict[str, np.ndarray]:
        coverage, redundancy = total
        return {
            "score": (coverage * _UNIT - redundancy) / _UNIT,
            "coverage": coverage.astype(np.float64),
            "redundancy": redundancy / _UNIT,
        }

    def rank_key(self, score: np.ndarray, uid: np.ndarray, seed: int) -> np.ndarray:
        """The authors' code starts every score at U(0, 1); here a function of (seed, uid)."""
        return score if self.tie_break == "none" else score + uid_uniform(seed, uid, use=1)

    def weight(self, score: np.ndarray, low: float, high: float) -> np.ndarray:
        """Eq. 10, read as (s - min) / (max - min); 1 where all scores are equal."""
        return (score - low) / (high - low) if high > low else np.ones(len(score))

    def facts(self, prepared: Slices) -> dict[str, Any]:
        return {
            "dimensions": len(prepared.column) + len(prepared.constant),
            "constant_dimensions_dropped": prepared.constant.tolist(),
            "neighbors_used": min(self.neighbors, prepared.column.shape[1] - 1),
        }

    def _points(
        self, slices: Slices, seed: int, first: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Dimensions (count, dims) int64 and points (count, dims) float64 of the draws."""
        words = draw_words(seed, first, count, 2 * self.dims)
        dims = _distinct(words[:, : self.dims], len(slices.column))
        u = unit_interval(words[:, self.dims :])
        low, mode, high = slices.low[dims], slices.mode[dims], slices.high[dims]
        span = high - low
        rising = low + np.sqrt(u * span * (mode - low))
        falling = high - np.sqrt((1.0 - u) * span * (high - mode))
        return dims, np.where(u * span < mode - low, rising, falling)


def _distinct(words: np.ndarray, bound: int) -> np.ndarray:
    """(count, dims) words → as many rows of distinct integers, uniform in {0 … bound - 1}.

    The j-th pick is uniform over the values not yet picked: its rank among them is drawn, then
    moved up past each earlier pick that lies at or below it.
    """
    count, dims = words.shape
    picked = np.empty((count, dims), np.int64)
    for j in range(dims):
        value = below(words[:, j], bound - j).astype(np.int64)
        for earlier in np.sort(picked[:, :j], axis=1).T:
            value += value >= earlier
        picked[:, j] = value
    return picked
