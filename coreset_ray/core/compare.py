"""How a coreset stands beside random: mean, spread and the interval of the difference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Mean difference with its 95% confidence interval; low and high are None for one seed. p: of
    Student's two-sided t test; None where it is undefined, for one seed or equal differences."""

    mean: float
    low: float | None
    high: float | None
    p: float | None = None

    def verdict(self) -> str:
        """`better`, `worse`, or `not told apart`."""
        if self.low is None or self.high is None:
            return "one seed: no interval"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not told apart"


def paired_difference(ours: Sequence[float], other: Sequence[float]) -> Difference:
    """Mean of ours - other over paired seeds, with Student's 95% interval (s - 1 degrees)."""
    d = np.asarray(ours) - np.asarray(other)
    mean = float(d.mean())
    if len(d) < 2:
        return Difference(mean, None, None)
    error = float(d.std(ddof=1) / np.sqrt(len(d)))
    if error <= 1e-12 * np.abs([ours, other]).max():  # equal but for rounding
        error = 0.0
    half = float(stats.t.ppf(0.975, len(d) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(d) - 1)) if error else None if mean else 1.0
    return Difference(mean, mean - half, mean + half, p)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for as many comparisons (Holm, 1979): to reject those at most 0.05 makes
    one or more false rejections with probability 0.05 at most."""
    adjusted, least = [0.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = least
    return adjusted


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
