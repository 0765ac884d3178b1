"""FreeSel: images drawn for the local patterns in them that nothing chosen yet resembles."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.exact import grid_rows
from coreset_ray.core.nearest import lower, squares
from coreset_ray.core.pool import Pool
from coreset_ray.core.selection import Selection
from coreset_ray.core.spherical import first_clock
from coreset_ray.core.whole_set import Given, WholeSet

_DRAWING = 1 << 40  # the use of random numbers, and those after it
_FARTHEST = 4.0  # the largest squared distance of two rows of length 1
_OFF = 0.05  # that a squared length may be from 1


@dataclass(frozen=True)
class FreeSel(WholeSet):
    """Covers what is seen in parts of images, of which each has `patterns`.

    Equation: next is the image of a pattern drawn with P ∝ D², the squared distance from the
    nearest pattern of the images chosen so far; so P(image) ∝ Σ_patterns D².
    Source: Xie et al., 2023 (FreeSel), distance-based sampling.
    Cost: O(n·p·d·k·p) for p patterns of d numbers. Differs: patterns of length 1.
    """

    patterns: int = 5

    needs: ClassVar[tuple[str, ...]] = ("patterns.pattern",)
    family: ClassVar[str] = "geometry"
    source: ClassVar[str] = "Xie et al., 2023"
    cost: ClassVar[str] = "O(n·d·k·p²)"
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.patterns < 1:
            raise ValueError(f"patterns={self.patterns}: expected at least 1")

    def work(self, n: int, k: int) -> float:
        return float(n) * k

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        n, p = len(pool), self.patterns
        rows = grid_rows(_apart(pool["patterns.pattern"], p))
        square, apart = squares(rows), np.full(n * p, _FARTHEST)
        left, chosen, gains = np.ones(n, bool), [*given.kept.tolist()], []
        for row in chosen:
            lower(apart, rows, square, rows[row * p : (row + 1) * p])
        left[given.kept] = False
        for turn in range(len(chosen), len(chosen) + k):
            worth = np.where(left, _sums(apart.reshape(n, p)), 0)
            rate = worth if worth.any() else left.astype(np.float64)
            row = first_clock(rate, pool.uid, seed, _DRAWING + turn)
            chosen.append(row)
            gains.append(worth[row])
            left[row] = False
            lower(apart, rows, square, rows[row * p : (row + 1) * p])
        return Selection(np.array(chosen[len(given.kept) :], np.int64), np.array(gains), np.ones(k))


def _apart(pattern: np.ndarray, count: int) -> np.ndarray:
    """(n, count·d) → (n·count, d). Raises `ValueError` where these are not of length 1, as they
    are not when they are cut at other places than where one ends."""
    width = pattern.shape[1]
    if width % count == 0:
        rows = pattern.reshape(-1, width // count)
        square = np.einsum("ij,ij->i", rows, rows, dtype=np.float32)
        if (np.abs(square - 1) < _OFF).all():
            return rows
    raise ValueError(
        f"patterns={count}: the {width} numbers of patterns.pattern are not {count} rows of length "
        "1; give as many as the signal holds, signals.patterns.count"
    )


def _sums(values: np.ndarray) -> np.ndarray:
    """Of each row, in the order of its columns."""
    total = np.zeros(len(values))
    for column in values.T:
        total += column
    return total
