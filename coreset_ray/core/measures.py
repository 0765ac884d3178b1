"""How good a coreset is when the pool has no labels: coverage, effective size, agreement."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

BINS = 2000
EDGES = np.arange(1, BINS + 1) / 1000  # upper ends of the bins; the farthest two rows are 2 apart
_UNITS = 1 << 32  # of a sum of distances


def chord(cosine: np.ndarray) -> np.ndarray:
    """√(2 − 2cos): how far apart two rows of length 1 lie, 0 … 2. Rows of zeros, whose cosine is
    defined as 0, are √2 from every row."""
    return np.sqrt(2 - 2 * cosine)


@dataclass(frozen=True, eq=False)
class Distances:
    """Of some rows to the nearest row kept. Records of disjoint rows add up, in any order, to the
    bits of the record of all.

    histogram: (2000,) int64, rows by distance, bin i above i/1000 and up to (i + 1)/1000, 0 in the
    first; total: sum of distances, each rounded to 2⁻³²; largest: 0 of no rows.
    """

    histogram: np.ndarray
    total: int
    largest: float

    @classmethod
    def of(cls, distance: np.ndarray) -> "Distances":
        """distance: (n,) float64, chords."""
        assert ((distance >= 0) & (distance <= 2)).all(), "no chord of the unit sphere"
        histogram = np.bincount(np.searchsorted(EDGES, distance), minlength=BINS)
        total = int(np.rint(distance * _UNITS).astype(np.int64).sum())
        return cls(histogram, total, float(distance.max(initial=0.0)))

    def __add__(self, other: "Distances") -> "Distances":
        return Distances(
            self.histogram + other.histogram,
            self.total + other.total,
            max(self.largest, other.largest),
        )

    def __len__(self) -> int:
        return int(self.histogram.sum())

    @property
    def mean(self) -> float:
        """0 of no rows."""
        return self.total / (_UNITS * max(1, len(self)))

    def coverage(self, radius: float) -> float:
        return coverage(self.histogram, radius)

    def quantile(self, share: float) -> float:
        """The smallest end of a bin within which such a share of the rows lies, at most the
        largest distance: right to 0.001, from above. 0 of no rows."""
        if not 0 < share <= 1:
            raise ValueError(f"quantile {share}: expected a share above 0 and up to 1")
        within = np.cumsum(self.histogram)
        return min(self.largest, float(EDGES[np.searchsorted(within, share * within[-1])]))

    def record(self) -> dict[str, Any]:
        """JSON-able: images, mean, max, median, q95 and histogram."""
        return {
            "images": len(self),
            "mean": self.mean,
            "max": self.largest,
            "median": self.quantile(0.5),
            "q95": self.quantile(0.95),
            "histogram": self.histogram.tolist(),
        }


def coverage(histogram: Sequence[int] | np.ndarray, radius: float) -> float:
    """Share of rows within `radius` of a row kept (survey, Eq. 3), 1 of no rows.

    histogram: as in `Distances`. Exact where the radius is a multiple of 0.001; between two of
    them, the share of the smaller.
    """
    if not EDGES[0] <= radius <= EDGES[-1]:
        raise ValueError(f"radius={radius}: expected a chord from {EDGES[0]} to {EDGES[-1]:g}")
    return float(coverage_curve(histogram)[np.searchsorted(EDGES, radius, "right") - 1])


def coverage_curve(histogram: Sequence[int] | np.ndarray) -> np.ndarray:
    """Coverage at each of `EDGES`, (2000,)."""
    within = np.cumsum(np.asarray(histogram, np.int64))
    return within / within[-1] if within[-1] else np.ones(BINS)


def effective_size(weights: np.ndarray) -> float:
    """Number of equally weighted images of the same statistical efficiency, (Σw)²/Σw² (survey,
    Eq. 46): k where all weigh the same, towards 1 as one outweighs the rest.

    weights: (k,). Raises `ValueError` where none is above 0, one is below, or not finite.
    """
    w = np.asarray(weights, np.float64)
    bad = np.flatnonzero(~np.isfinite(w) | (w < 0))
    if len(bad):
        raise ValueError(f"weight {w[bad[0]]} of image {bad[0]}: weights are finite and 0 or more")
    if not w.any():
        raise ValueError(f"none of {len(w)} weights is above 0: a coreset needs one that is")
    w = w / w.max()
    return math.fsum(w) ** 2 / math.fsum(w * w)


@dataclass(frozen=True)
class Agreement:
    """overlap: mean share of images that two selections have in common; chance: what two random
    ones would have, k/n."""

    overlap: float
    chance: float


def agreement(selections: Sequence[Sequence[Hashable]], n: int) -> Agreement:
    """How far selections at different seeds choose the same images: |A∩B|/k, over all pairs.

    selections: two or more of k identities each, no two alike in one; n: images of the pool.
    """
    sets, k = [set(chosen) for chosen in selections], len(selections[0]) if selections else 0
    if len(sets) < 2:
        raise ValueError(f"{len(sets)} selections: agreement needs two or more, of several seeds")
    for i, (kept, chosen) in enumerate(zip(sets, selections, strict=True)):
        if len(chosen) != k:
            raise ValueError(
                f"selection {i} has {len(chosen)} images, the first {k}: compare equals"
            )
        if len(kept) < k:
            raise ValueError(f"selection {i} names {k - len(kept)} images twice: keep each once")
    if not 0 < k <= n:
        raise ValueError(f"selections of {k} images: expected 1 to {n}, the pool's size")
    pairs = list(combinations(sets, 2))
    return Agreement(sum(len(a & b) for a, b in pairs) / (k * len(pairs)), k / n)
