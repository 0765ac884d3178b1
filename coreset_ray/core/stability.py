"""How much of a sum of random draws is signal: what two independent halves of the draws say.

Source: Spearman (1910) and Brown (1910) for the reliability of a whole from that of its halves.
Extrapolations assume that two runs' scores are jointly normal near the cut in question: what the
halves share of a top fraction says which normal scores would share as much. One correlation for all
cuts would not do where few images stand out and the rest are noise.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FRACTIONS = (0.01, 0.05, 0.1, 0.3)  # budgets whose overlap is reported
_TARGET = 0.5  # the overlap whose price in draws is reported
_MOSTLY_NOISE = 0.5
_COUNTED = 100  # images of a top fraction from which on what halves share is counted


def correlation(sums: Sequence[float], rows: int) -> float:
    """Pearson's r from (Σa, Σb, Σa², Σb², Σab); 0 where a or b is constant."""
    a, b, aa, bb, ab = sums
    spread = (aa - a * a / rows) * (bb - b * b / rows)
    return (ab - a * b / rows) / math.sqrt(spread) if spread > 0 else 0.0


def repeatability(halves: float) -> float:
    """Correlation to expect of two whole runs with different seeds, from that of two halves."""
    return 2 * halves / (1 + halves) if halves > -1 else -1.0


def overlap(r: float, fraction: float) -> float:
    """Share of a run's top `fraction` that another run, correlated at r, has in its own."""
    if r >= 1:
        return 1.0
    r = max(r, -0.999999)
    z = _normal_quantile(1 - fraction)
    x = np.linspace(z, z + 10, 4001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    inner = (r * x - z) / math.sqrt(1 - r * r)
    tail = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in inner])
    return float(np.trapezoid(density * tail, x) / fraction)


def correlation_of(shared: float, fraction: float) -> float:
    """The inverse of `overlap`: the correlation of runs that share so much of their top."""
    if shared >= 1:
        return 1.0
    low, high = -1.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle, fraction) < shared else (low, middle)
    return low if low > -1 else -1.0


def draws_for(target: float, fraction: float, r: float, draws: int) -> int | None:
    """Draws with which two runs would share `target` of their top `fraction`, given that with
    `draws` they correlate at r: noise falls with the root of draws. None where r shows no signal.
    """
    if r <= 0:
        return None
    if r >= 1:
        return draws
    needed = correlation_of(target, fraction)
    return math.ceil(draws * (needed / (1 - needed)) / (r / (1 - r)))


def report(
    halves: Mapping[str, float],
    overlaps: Mapping[float, float],
    untouched: float,
    draws: int,
    rows: int,
) -> dict[str, Any]:
    """halves: correlation between the halves by column; overlaps: of the halves' top fractions;
    untouched: share of images that no draw changed.

    top: for each fraction what the halves share, the correlation of two whole runs near that cut
    (by all scores where the fraction is of too few images), and what those would share.
    """
    whole = {name: repeatability(r) for name, r in halves.items()}
    r = whole["score"]
    near = {
        f: repeatability(correlation_of(seen, f)) if f * rows >= _COUNTED else r
        for f, seen in overlaps.items()
    }
    return {
        "draws": draws,
        "halves": dict(halves),
        "repeat": whole,
        "signal_to_noise": r / (1 - r) if r < 1 else None,
        "top": {
            str(f): {
                "halves": seen,
                "correlation": near[f],
                "repeat": overlap(near[f], f),
                "chance": f,
            }
            for f, seen in overlaps.items()
        },
        "untouched": untouched,
        "draws_for": {
            str(f): {"overlap": _TARGET, "draws": draws_for(_TARGET, f, near[f], draws)}
            for f in overlaps
        },
    }


def expected_overlap(report: Mapping[str, Any], fraction: float) -> float:
    """Share of the top `fraction` that two such runs would have in common; between the fractions
    of the report its correlations are interpolated."""
    if fraction >= 1:
        return 1.0
    places = [float(f) for f in report["top"]]  # ascending
    all_scores = report["repeat"]["score"]  # earlier reports had no other
    near = [top.get("correlation", all_scores) for top in report["top"].values()]
    return overlap(float(np.interp(fraction, places, near)), fraction)


def in_words(report: Mapping[str, Any]) -> str | None:
    """A warning where the ranking is mostly noise, else None."""
    r = report["repeat"]["score"]
    if r >= _MOSTLY_NOISE:
        return None
    fraction = "0.1"
    price = report["draws_for"][fraction]["draws"]
    more = f"about {price:.2g} draws" if price else "more draws than can be told from these"
    return (
        f"the ranking is mostly noise: two runs of {report['draws']:,} draws with different seeds "
        f"would correlate at {r:.2f} and share {report['top'][fraction]['repeat']:.0%} of their "
        f"top 10% (10% by chance); sharing {_TARGET:.0%} would take {more}"
    )


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
