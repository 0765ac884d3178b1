"""Log-determinant of a linear kernel, in its m × m dual form and brought up to date row by row."""

import math

import numba
import numpy as np

from coreset_ray.core.directions import Directions, blocks
from coreset_ray.core.submodular import Function

ROOM = 64  # vectors that are made room for at first


class LogDeterminant(Function):
    """How much of the space the rows taken span: f(S) = log det(I + scale · X_S X_Sᵀ), of rows of
    length 1, which equals log det(A), A = I + scale · Σ_{j ∈ S} x_j x_jᵀ, m × m.

    A gain is log(1 + scale · q_j), q_j = x_jᵀ A⁻¹ x_j. Taking a row adds one vector w to
    A⁻¹ = I - Σ w wᵀ (Sherman and Morrison) and takes (w·x_j)² off each q_j; a row's share is only
    computed when its gain is asked for. O(m) a row and row taken, O(n + k·m) beside the rows.
    """

    def __init__(self, of: Directions, scale: float) -> None:
        super().__init__()
        self.of, self.scale = of, scale
        self.left, self.seen = np.empty(len(of)), np.zeros(len(of), np.int64)
        for rows in blocks(np.arange(len(of)), of.width):
            x = of.take(rows)
            self.left[rows] = np.einsum("ij,ij->i", x, x, dtype=np.float64)
        self.count, self.basis = 0, np.zeros((ROOM, of.width))

    def gain(self, rows: np.ndarray) -> np.ndarray:
        told = self.basis, self.seen, self.left, self.count, self.scale
        found = [_gains(self.of.take(some), some, *told) for some in blocks(rows, self.of.width)]
        return np.concatenate([np.empty(0), *found])

    def add(self, row: int) -> None:
        self.gain(np.array([row]))
        x = self.of.take(np.array([row]))[0]
        if self.count == len(self.basis):
            basis, self.basis = self.basis, np.zeros((2 * self.count, self.of.width))
            self.basis[: self.count] = basis
        length = math.sqrt(self.scale / (1 + self.scale * self.left[row]))
        self.basis[self.count] = length * _solved(self.basis, self.count, x)
        self.count += 1


@numba.njit(nogil=True, cache=True)
def _dot(x, y):
    """An inner product whose order of adding is fixed, and which a processor can do in parallel."""
    a = b = c = d = e = f = g = h = 0.0
    whole = len(x) // 8 * 8
    for j in range(0, whole, 8):
        a += x[j] * y[j]
        b += x[j + 1] * y[j + 1]
        c += x[j + 2] * y[j + 2]
        d += x[j + 3] * y[j + 3]
        e += x[j + 4] * y[j + 4]
        f += x[j + 5] * y[j + 5]
        g += x[j + 6] * y[j + 6]
        h += x[j + 7] * y[j + 7]
    for j in range(whole, len(x)):
        a += x[j] * y[j]
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@numba.njit(nogil=True, cache=True)
def _gains(vectors, rows, basis, seen, left, count, scale):
    found = np.empty(len(rows))
    for r in range(len(rows)):
        row = rows[r]
        x = vectors[r].astype(np.float64)
        for i in range(seen[row], count):
            along = _dot(basis[i], x)
            left[row] = max(left[row] - along * along, 0.0)
        seen[row] = count
        found[r] = math.log1p(scale * left[row])
    return found


@numba.njit(nogil=True, cache=True)
def _solved(basis, count, z):
    """A⁻¹ x."""
    x = z.astype(np.float64)
    found = x.copy()
    for i in range(count):
        along = _dot(basis[i], x)
        for j in range(len(x)):
            found[j] -= along * basis[i, j]
    return found
