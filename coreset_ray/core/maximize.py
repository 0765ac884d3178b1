"""Greedy maximisers of submodular functions, and the method that is one of each.

Among k rows, what greedy choice gives is worth at least 1 - 1/e of the best for a monotone function
(Nemhauser et al., 1978). Rows are numbered in ascending order of uid, so that ties go to the
smallest row.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from coreset_ray.core.bounds import Bounds
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import below, draw_words
from coreset_ray.core.selection import Selection
from coreset_ray.core.submodular import Function
from coreset_ray.core.whole_set import Given, WholeSet

Optimizer = Literal["naive", "lazy", "stochastic", "lazier"]


@dataclass(frozen=True)
class Submodular(WholeSet):
    """Maximises a function greedily.

    optimizer: naive, all gains at each step; lazy, the same rows from fewer gains (Minoux, 1978);
    stochastic, at each step the best of ⌈(n / k) log(1 / epsilon)⌉ rows drawn from the seed, worth
    1 - 1/e - epsilon on average (Mirzasoleiman et al., 2015); lazier, the same rows as stochastic,
    from fewer gains. A smaller budget's choice is the beginning of a larger one's with the first
    two only.
    """

    optimizer: Optimizer = "lazy"
    epsilon: float = 0.1

    seeded: ClassVar[bool] = False
    continues: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon={self.epsilon}: expected a number between 0 and 1")
        if self.optimizer in ("stochastic", "lazier"):
            for name, value in (("seeded", True), ("nested", False), ("continues", False)):
                object.__setattr__(self, name, value)  # of these settings, not of the class

    @abstractmethod
    def function(self, pool: Pool, given: Given) -> Function:
        """What is maximised, shaped by the rows that are chosen already."""

    def candidates(self, pool: Pool, k: int, given: Given) -> np.ndarray:
        """Rows that may be chosen, (r,) int64 ascending: by default all that are not yet."""
        return np.setdiff1d(np.arange(len(pool)), given.kept)

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        function = self.function(pool, given)
        rows = self.candidates(pool, k, given)
        return maximize(function, rows, k, self.optimizer, seed=seed, epsilon=self.epsilon)


def maximize(
    function: Function,
    rows: np.ndarray,
    k: int,
    optimizer: Optimizer,
    *,
    seed: int = 0,
    epsilon: float = 0.1,
) -> Selection:
    """k of these rows, (r,) int64 ascending, in the order of choosing; the function has taken
    them."""
    if optimizer in ("naive", "lazy"):
        steps = _lazy(function, rows, k) if optimizer == "lazy" else _naive(function, rows, k)
    else:
        best = _best_lazily(function, rows) if optimizer == "lazier" else _best_of(function)
        size = math.ceil(len(rows) / max(k, 1) * math.log(1 / epsilon))
        steps = _stochastic(function, rows, k, seed, size, best)
    chosen = list(steps)
    found = np.array([row for row, _ in chosen], np.int64)
    return Selection(found, np.array([gain for _, gain in chosen], np.float64), np.ones(k))


Step = tuple[int, float]  # a row and its gain


def _naive(function: Function, rows: np.ndarray, k: int) -> Iterator[Step]:
    best = _best_of(function)
    for _ in range(k):
        row, gain = best(rows)
        function.take(row)
        rows = rows[rows != row]
        yield row, gain


def _lazy(function: Function, rows: np.ndarray, k: int) -> Iterator[Step]:
    """A gain of an earlier step bounds today's: only what may be the best is computed again, one
    row at first, then two, four and so on at a time."""
    bounds = Bounds(rows, function.gain(rows))
    for step in range(k):
        size = 1
        while len(stale := bounds.stale(step, size)):
            bounds.put(stale, function.gain(stale), step)
            size *= 2
        row, gain = bounds.pop(step)
        function.take(row)
        yield row, gain


def _stochastic(
    function: Function,
    rows: np.ndarray,
    k: int,
    seed: int,
    size: int,
    best: Callable[[np.ndarray], Step],
) -> Iterator[Step]:
    """Step t draws from words that are a function of (seed, t)."""
    free = rows.copy()
    for step in range(k):
        left = len(free) - step
        places = np.arange(left)
        if size < left:
            places = below(draw_words(seed, step, 1, size)[0], left).astype(np.int64)
        row, gain = best(np.unique(free[places]))
        function.take(row)
        place = np.flatnonzero(free[:left] == row)[0]
        free[place] = free[left - 1]
        yield row, gain


def _best_of(function: Function) -> Callable[[np.ndarray], Step]:
    """The row of the highest gain, the first of equals."""

    def best(rows: np.ndarray) -> Step:
        gain = function.gain(rows)
        return int(rows[gain.argmax()]), float(gain.max())

    return best


def _best_lazily(function: Function, rows: np.ndarray) -> Callable[[np.ndarray], Step]:
    """The same row, as far as the gains known so far, which are bounds, do not settle it."""
    bound = dict(zip(rows.tolist(), function.gain(rows).tolist(), strict=True))

    def best(rows: np.ndarray) -> Step:
        found, most = -1, -math.inf
        for row in sorted(rows.tolist(), key=lambda row: (-bound[row], row)):
            if found >= 0 and (-bound[row], row) > (-most, found):
                break
            bound[row] = gain = float(function.gain(np.array([row]))[0])
            if found < 0 or (-gain, row) < (-most, found):
                found, most = row, gain
        return found, most

    return best
