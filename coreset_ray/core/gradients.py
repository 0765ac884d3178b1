"""Gradients of a classifier's last layer by their two factors: n × (c + h) numbers, not n × c·h.

The gradient of row i's cross-entropy is (p_i - onehot(y_i)) ⊗ [h_i; 1], a length times two
directions. Directions lie on the grid of `core/exact.py`, so that inner products are exact in any
order, in any blocks and by any number of threads; sums over rows are exact in tiles, which are
added in order.
"""

from dataclasses import dataclass

import numba
import numpy as np

from coreset_ray.core.exact import BITS, dots, grid_rows
from coreset_ray.core.nearest import dot, squares
from coreset_ray.core.pool import Pool

_TILE = 4096  # rows whose sums are exact
_HALF = BITS // 2


@dataclass(frozen=True)
class Gradients:
    """g_i = length_i · residual_i ⊗ feature_i of n rows.

    residual: (n, c) float32 and feature: (n, h + 1) float32, of length 1 on the grid, the last
    column of `feature` for the bias; length: (n,) float64; stretch: (n,) float64, the part of it
    that [h; 1] had.
    """

    residual: np.ndarray
    feature: np.ndarray
    length: np.ndarray
    stretch: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    def take(self, rows: np.ndarray | slice) -> "Gradients":
        return Gradients(
            *(self.residual[rows], self.feature[rows], self.length[rows], self.stretch[rows])
        )

    def products(self, others: "Gradients") -> np.ndarray:
        """All inner products with other gradients, (n, b) float64. O(n·b·(c + h))."""
        found = dots(self.residual, others.residual)
        found *= dots(self.feature, others.feature)
        found *= self.length[:, None]
        found *= others.length
        return found

    def products_with(self, rows: np.ndarray, one: int) -> np.ndarray:
        """Inner products of these rows and one more, (r,) float64, as of `products`."""
        return _products_with(self.residual, self.feature, self.length, rows, one)

    def squares(self) -> np.ndarray:
        """Squared lengths, (n,) float64, as `products` has them."""
        inner = squares(self.residual) * squares(self.feature)
        return inner * self.length * self.length

    def along(self, matrix: np.ndarray) -> np.ndarray:
        """Inner products with one gradient in full: (c, h + 1) → (n,) float64. O(n·c·h)."""
        return (self._through(matrix) * self.residual).sum(axis=1) * self.length

    def outputs(self, matrix: np.ndarray) -> np.ndarray:
        """What a last layer of these weights makes of [h; 1]: (c, h + 1) → (n, c) float64."""
        return self._through(matrix) * self.stretch[:, None]

    def _through(self, matrix: np.ndarray) -> np.ndarray:
        """Inner products of unit features and the rows of a matrix, rounded to the grid of its
        longest: (n, c) float64."""
        scale = _lengths(matrix).max(initial=0) or 1.0
        return dots(self.feature, _on_grid(matrix / scale)) * scale

    def total(self, weight: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Σ_i weight_i · g_i over these rows, all by default: (c, h + 1) float64."""
        of = np.arange(len(self)) if rows is None else rows
        left = (weight * self.length[of])[:, None] * self.residual[of]
        return outer_sum(left, self.feature, of)


def gradients_of(pool: Pool, label: np.ndarray) -> Gradients:
    """Gradients from the columns `proxy.probability` and `proxy.feature`, for (n,) labels."""
    probability, hidden = pool["proxy.probability"], pool["proxy.feature"]
    check_label(label, probability.shape[1])
    residual = probability.astype(np.float64)
    residual[np.arange(len(pool)), label] -= 1
    feature = np.concatenate([hidden, np.ones((len(hidden), 1), hidden.dtype)], axis=1)
    stretch = _lengths(feature)
    return Gradients(grid_rows(residual), grid_rows(feature), _lengths(residual) * stretch, stretch)


def check_label(label: np.ndarray, classes: int) -> None:
    """`ValueError` for a label that the classifier has no output for."""
    bad = np.flatnonzero((label < 0) | (label >= classes))
    if len(bad):
        raise ValueError(
            f"proxy.label of row {bad[0]} is {label[bad[0]]}: expected 0 to {classes - 1}, one of "
            "the columns of proxy.probability; make the signal anew"
        )


def predicted(pool: Pool) -> np.ndarray:
    """The likeliest class of each row, the first of equals: (n,) int64."""
    return pool["proxy.probability"].argmax(axis=1)


def outer_sum(left: np.ndarray, feature: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Σ_i left_i ⊗ feature[rows_i]: (r, c) float64, (n, m) on the grid → (c, m) float64.

    `left` is rounded to the grid of its largest entry, and cut into its upper and its lower bits:
    products with either leave a float64 room for the sum of a tile. O(r·c·m).
    """
    scale = np.abs(left).max(initial=0) or 1.0
    grid = _on_grid(left / scale)
    upper = np.rint(grid * 2.0**_HALF) * 2.0**-_HALF
    both = np.concatenate([upper, grid - upper], axis=1)
    total = np.zeros((both.shape[1], feature.shape[1]))
    for first in range(0, len(rows), _TILE):
        tile = feature[rows[first : first + _TILE]].astype(np.float64)
        total += both[first : first + _TILE].T @ tile
    return (total[: left.shape[1]] + total[left.shape[1] :]) * scale


@numba.njit(nogil=True, cache=True)
def approach(residual, feature, length, square, one, nearest):
    """Lowers `nearest`, (n,) squared distances, to those to row `one` where that is closer.

    ‖g_i - g_j‖² = ‖g_i‖² + ‖g_j‖² - 2⟨g_i, g_j⟩. Where residuals alone show that no feature could
    bring a row closer, none is read.
    """
    for i in range(len(nearest)):
        inner = dot(residual[i], residual[one])
        both = square[i] + square[one]
        most = 2 * abs(inner) * length[i] * length[one] * (1 + 1e-6)
        if both - most >= nearest[i]:
            continue
        product = inner * dot(feature[i], feature[one]) * length[i] * length[one]
        nearest[i] = min(nearest[i], max(both - 2 * product, 0.0))


@numba.njit(nogil=True, cache=True)
def _products_with(residual, feature, length, rows, one):
    found = np.empty(len(rows))
    for k in range(len(rows)):
        i = rows[k]
        inner = dot(residual[i], residual[one]) * dot(feature[i], feature[one])
        found[k] = inner * length[i] * length[one]
    return found


def _lengths(rows: np.ndarray) -> np.ndarray:
    """(n,) float64."""
    return np.sqrt(squares(rows))


def _on_grid(values: np.ndarray) -> np.ndarray:
    return np.rint(values * 2.0**BITS) * 2.0**-BITS
