"""How a coreset stands beside random: mean, spread and the interval of the difference."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Difference:
    """Mean difference with its 95% confidence interval; low and high are None for one seed."""

    mean: float
    low: float | None
    high: float | None

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
    half = float(stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return Difference(mean, mean - half, mean + half)


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
