"""Which slices of the embedding space are drawn, and which points in them."""

from typing import Literal

import numpy as np
from scipy.special import ndtri

from coreset_ray.core.columns import Spread
from coreset_ray.core.random import below, draw_words, unit_interval

Sampling = Literal["triangular", "gaussian", "uniform"]


def draw_slices(
    spread: Spread, seed: int, first: int, count: int, dims: int, per_slice: int
) -> np.ndarray:
    """Dimensions of draws first … first + count - 1: (count, dims) int64, distinct in a row.

    Draws share a slice in groups of `per_slice`; a slice is a function of (seed, group) alone,
    and every choice of dimensions that vary is as likely as every other (Eq. 4).
    """
    words = draw_words(seed, first, count, 2 * dims)[:, :dims]
    if per_slice > 1:
        group = np.arange(first, first + count) // per_slice
        lead, place = np.unique(group, return_inverse=True)
        words = np.concatenate(
            [draw_words(seed, int(g) * per_slice, 1, 2 * dims)[:, :dims] for g in lead]
        )[place]
    return spread.live[_distinct(words, len(spread.live))]


def draw_points(
    spread: Spread, sampling: Sampling, seed: int, first: int, dims: np.ndarray
) -> np.ndarray:
    """Points of the draws from `first` on, one for each row of dims: (count, d) float64, each
    draw's independent of all others.

    Triangular: from the minimum by the median to the maximum of each dimension (Eq. 3).
    Gaussian: its mean and standard deviation. Uniform: between its minimum and maximum.
    """
    count, d = dims.shape
    return _points_at(spread, sampling, dims, draw_words(seed, first, count, 2 * d)[:, d:])


def spread_points(
    spread: Spread,
    sampling: Sampling,
    seed: int,
    first: int,
    dims: np.ndarray,
    per_slice: int,
    each: int,
) -> np.ndarray:
    """`each` points of the draws from `first` on, (count, each, d) float64; those of a slice lie
    evenly. With one draw a slice and one point a draw, they are those of `draw_points`.

    A slice's points are a Kronecker sequence moved as a whole by a random shift: each of them
    follows the law of `draw_points`, and slices are independent. The first points of a slice's
    draws are the start of its sequence, the further points continue it.
    """
    count, d = dims.shape
    draw = np.arange(first, first + count)
    lead = draw - draw % per_slice
    start, group = int(lead[0]) if count else 0, (lead - lead[:1]) // per_slice
    words = draw_words(seed, start, first + count - start, 2 * d)[:, d:]
    shift = words[group * per_slice]
    number = np.empty((count, each), np.uint64)
    number[:, 0] = draw - lead
    number[:, 1:] = (per_slice + (draw - lead) * (each - 1))[:, None] + np.arange(each - 1)
    moved = shift[:, None] + number[..., None] * _steps(d)  # modulo 2⁶⁴
    return _points_at(spread, sampling, dims[:, None], moved)


def near_order(dims: np.ndarray) -> np.ndarray:
    """An order of draws in which neighbours share dimensions, so that caches hold their columns.

    dims: (count, d). Returns (count,) int64.
    """
    ordered = np.sort(dims[:, :2], axis=1)
    return np.lexsort(ordered.T[::-1])


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


def _points_at(
    spread: Spread, sampling: Sampling, dims: np.ndarray, words: np.ndarray
) -> np.ndarray:
    """Uniform words → coordinates in their dimensions, of the shape that both broadcast to."""
    u = unit_interval(words)
    low, mode, high = spread.low[dims], spread.mode[dims], spread.high[dims]
    if sampling == "uniform":
        return low + u * (high - low)
    if sampling == "gaussian":
        return spread.mean[dims] + spread.deviation[dims] * ndtri(np.maximum(u, 2.0**-54))
    span = high - low
    rising = low + np.sqrt(u * span * (mode - low))
    falling = high - np.sqrt((1.0 - u) * span * (high - mode))
    return np.where(u * span < mode - low, rising, falling)


def _steps(dims: int) -> np.ndarray:
    """Steps of a sequence that fills a cube of so many dimensions evenly, (dims,) uint64 in units
    of 2⁻⁶⁴: powers of 1 / r, where r^(dims + 1) = r + 1 (Roberts' generalised golden ratio)."""
    root = 2.0
    for _ in range(100):
        root = (1.0 + root) ** (1.0 / (dims + 1))
    return np.array([int(root**-j * 2.0**53) << 11 for j in range(1, dims + 1)], np.uint64)
