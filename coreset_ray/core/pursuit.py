"""Non-negative ridge regression on a growing list of columns, solved exactly after each.

min over w ≥ 0 of ‖b - Σ_j w_j a_j‖² + λ‖w‖², from inner products alone: the active-set method of
Lawson and Hanson, 1974, on the Gram matrix, whose Cholesky factor grows and shrinks by one row.
Loops in a fixed order: the same bits on any machine and for any number of threads.
"""

import numba
import numpy as np

_SMALL = 1e-12  # of the largest ⟨a, b⟩: what counts as 0


class Pursuit:
    """room: of how many columns; ridge: λ. O(room²) memory, O(j²) for the j-th column."""

    def __init__(self, room: int, ridge: float):
        self.gram, self.factor = np.zeros((room, room)), np.zeros((room, room))
        self.aim, self.weight = np.zeros(room), np.zeros(room)
        self.order, self.active, self.count, self.ridge = np.zeros(room, np.int64), 0, 0, ridge

    def add(self, products: np.ndarray, aim: float) -> np.ndarray:
        """One more column. products: with all columns so far and itself, (j,); aim: with b.
        Returns the weights of all j. The value of the objective never rises."""
        j = self.count
        self.gram[j, : j + 1] = self.gram[: j + 1, j] = products
        self.gram[j, j] += self.ridge
        self.aim[j], self.count = aim, j + 1
        small = _SMALL * float(np.abs(self.aim[: j + 1]).max())
        arrays = (self.gram, self.aim, self.weight, self.factor, self.order)
        self.active = _fit(*arrays, self.active, j + 1, small)
        return self.weight[: self.count]


@numba.njit(nogil=True, cache=True)
def _fit(gram, aim, weight, factor, order, active, count, small):
    """Weights at which no column has anything to give; the number of those above 0."""
    barred = np.zeros(count, np.bool_)  # had something to give by rounding alone
    while True:
        used = barred.copy()
        for a in range(active):
            used[order[a]] = True
        one, most = -1, small
        for j in range(count):
            if used[j]:
                continue
            slope = aim[j]
            for a in range(active):
                slope -= gram[j, order[a]] * weight[order[a]]
            if slope > most:
                one, most = j, slope
        if one < 0:
            return active
        _enter(gram, factor, order, active, one)
        active = _settle(aim, weight, factor, order, active + 1)
        barred[one] = weight[one] == 0


@numba.njit(nogil=True, cache=True)
def _settle(aim, weight, factor, order, active):
    """Moves to the best weights of the columns in use, which lose those that would go below 0."""
    while True:
        best = _solve(aim, factor, order, active)
        share, out = 1.0, -1
        for a in range(active):
            if best[a] <= 0:
                now = weight[order[a]]
                part = now / (now - best[a]) if now > 0 else 0.0
                if out < 0 or part < share:
                    share, out = part, a
        for a in range(active):
            weight[order[a]] += share * (best[a] - weight[order[a]])
        if out < 0:
            return active
        weight[order[out]] = 0.0
        _leave(factor, order, active, out)
        active -= 1


@numba.njit(nogil=True, cache=True)
def _enter(gram, factor, order, active, one):
    """Adds a row to the factor: L Lᵀ = Gram matrix of the columns in use."""
    order[active] = one
    square = gram[one, one]
    for a in range(active):
        value = gram[one, order[a]]
        for b in range(a):
            value -= factor[a, b] * factor[active, b]
        factor[active, a] = value / factor[a, a]
        square -= factor[active, a] ** 2
    factor[active, active] = np.sqrt(max(square, 1e-14 * gram[one, one]))


@numba.njit(nogil=True, cache=True)
def _leave(factor, order, active, out):
    """Takes a row from the factor, and turns what is left back into a triangle (Givens)."""
    for a in range(out, active - 1):
        order[a] = order[a + 1]
        for b in range(a + 2):
            factor[a, b] = factor[a + 1, b]
    for a in range(out, active - 1):
        x, y = factor[a, a], factor[a, a + 1]
        length = np.sqrt(x * x + y * y)
        for b in range(a, active - 1):
            p, q = factor[b, a], factor[b, a + 1]
            factor[b, a], factor[b, a + 1] = (x * p + y * q) / length, (x * q - y * p) / length


@numba.njit(nogil=True, cache=True)
def _solve(aim, factor, order, active):
    """The weights of the columns in use that minimise the objective without w ≥ 0."""
    best = np.empty(active)
    for a in range(active):
        value = aim[order[a]]
        for b in range(a):
            value -= factor[a, b] * best[b]
        best[a] = value / factor[a, a]
    for a in range(active - 1, -1, -1):
        best[a] /= factor[a, a]
        for b in range(a):
            best[b] -= factor[a, b] * best[a]
    return best
