"""Greedy methods: one image after another, each the best beside those already chosen.

The pool lies in blocks, each with a state of its own. All blocks are told of every image chosen;
each then offers its best, and the best of these is next. One block or many, here or on a cluster:
the choice is the same.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from coreset_ray.core.method import Method
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import check_seed
from coreset_ray.core.selection import Selection, resolve_budget

State = TypeVar("State")


@dataclass(frozen=True)
class Offer:
    """The best row of a block: its gain, its number in the pool, its uid as two integers, and its
    columns (those the method needs)."""

    gain: float
    number: int
    uid: tuple[int, int]
    columns: dict[str, Any]

    @property
    def place(self) -> tuple[float, tuple[int, int]]:
        """The smallest is the best: highest gain, ties to the smallest uid."""
        return -self.gain, self.uid


class Greedy(Method, Generic[State]):
    """Keeps at each step the row with the highest gain beside those already kept."""

    @abstractmethod
    def start(self, block: Pool, first: int, seed: int) -> State:
        """The state of a block of consecutive rows before anything is chosen; first: the number
        of its first row in the pool."""

    @abstractmethod
    def gain(self, state: State) -> np.ndarray:
        """What each row of the block would add, (rows,) float64."""

    @abstractmethod
    def take(self, state: State, chosen: Offer) -> None:
        """Updates a block's state now that this row, of this block or of another, is chosen."""


class Block(Generic[State]):
    """A block of a pool under a greedy method."""

    def __init__(self, method: Greedy[State], block: Pool, first: int, seed: int):
        self.method, self.block, self.first = method, block.restrict(method.needs), first
        self.state = method.start(self.block, first, seed)
        self.free = np.ones(len(block), bool)

    def take(self, chosen: Offer | None) -> Offer | None:
        """Tells the block what was chosen; its best row of those left, None where none is."""
        if chosen is not None:
            self.method.take(self.state, chosen)
            if 0 <= chosen.number - self.first < len(self.free):
                self.free[chosen.number - self.first] = False
        if not self.free.any():
            return None
        gain = np.where(self.free, self.method.gain(self.state), -np.inf)
        tied = np.flatnonzero(gain == gain.max())
        uid = self.block.uid
        row = int(min(tied, key=lambda i: (uid[i, 0], uid[i, 1])))
        columns = {name: self.block[name][row] for name in self.method.needs}
        words = int(uid[row, 0]), int(uid[row, 1])
        return Offer(float(gain[row]), self.first + row, words, columns)


def best_of(offers: Iterable[Offer | None]) -> Offer:
    """The next row of all."""
    return min((o for o in offers if o is not None), key=lambda o: o.place)


def greedy_rows(
    method: Greedy[Any], pool: Pool, budget: int | float, seed: int, cuts: Sequence[int] = ()
) -> Selection:
    """The rows a greedy method keeps, in the order of choosing, in this process.

    cuts: where blocks of the pool begin, beside 0; the answer does not depend on them.
    """
    check_seed(seed)
    k = resolve_budget(budget, len(pool))
    ends = zip([0, *cuts], [*cuts, len(pool)], strict=True)
    blocks = [Block(method, pool.take(np.arange(a, b)), a, seed) for a, b in ends if b > a]
    chosen: list[Offer] = []
    while len(chosen) < k:
        last = chosen[-1] if chosen else None
        chosen.append(best_of([block.take(last) for block in blocks]))
    rows = np.array([o.number for o in chosen], np.int64)
    return Selection(rows, np.array([o.gain for o in chosen], np.float64), np.ones(k))
