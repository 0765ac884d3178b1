"""Greedy methods: one image after another, each the best beside those already chosen.

The pool lies in blocks. Each offers its best rows, as many as are asked for, and says where the
rest of its rows stand. Among what all offer the choice goes on by itself for as long as the best
offer stands before every row that was not offered; then all blocks are told what was chosen. One
block or many, one offer or many, here or on a cluster: the choice is the same.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.method import Method
from coreset_ray.core.pool import Pool, joined
from coreset_ray.core.selection import top_rows

Place = tuple[float, int, int]  # the smallest is the best: highest gain, then the smallest uid
OFFERS = 64


@dataclass(frozen=True)
class Picked:
    """Rows with their numbers in the pool, (b,) int64, and gains, (b,) float64."""

    number: np.ndarray
    gain: np.ndarray
    rows: Pool

    def take(self, which: np.ndarray | list[int]) -> "Picked":
        return Picked(self.number[which], self.gain[which], self.rows.take(np.asarray(which, int)))

    def place(self, row: int) -> Place:
        high, low = self.rows.uid[row]
        return -float(self.gain[row]), int(high), int(low)


class Greedy(Method):
    """Keeps at each step the row with the highest gain beside those already kept.

    falls: no row's gain rises when one with a gain of 0 or more is chosen, so that several can be
    chosen before all blocks are told.
    """

    falls: ClassVar[bool] = True

    def prepare(self, block: Pool) -> Pool:
        """What the method computes with, each row by itself: the columns needed by default."""
        return block

    def survey(self, block: Pool) -> np.ndarray:
        """Whole numbers of the block, int64, that are added up over all blocks before the start."""
        return np.zeros(0, np.int64)

    def inform(self, block: Pool, total: np.ndarray, count: int) -> Pool:
        """The prepared rows with what each further needs that follows from the sum of all blocks'
        surveys: themselves by default. Arguments as in `start`."""
        return block

    def work(self, n: int, k: int) -> float:
        """How the time of a choice of k among n rows grows with both, in any unit."""
        return float(n) * k

    @abstractmethod
    def start(self, block: Pool, seed: int, total: np.ndarray, count: int) -> np.ndarray:
        """What each row is worth while nothing is chosen, (rows,) float64. total: of all blocks'
        surveys; count: rows of all blocks."""

    @abstractmethod
    def take(self, gain: np.ndarray, block: Pool, number: np.ndarray, chosen: Picked) -> None:
        """Updates the gains of the block's rows in place now that these rows, of this block or
        another, are chosen one after another. number: (rows,) ascending, of the block's rows."""


class Block:
    """Rows of a pool under a greedy method. number: (rows,) ascending, theirs in the pool."""

    def __init__(self, method: Greedy, block: Pool, number: np.ndarray):
        self.method, self.number = method, number
        self.rows = method.prepare(block.restrict(method.needs))
        self.free = np.ones(len(number), bool)
        self.gain = np.empty(0)

    def survey(self) -> np.ndarray:
        return self.method.survey(self.rows)

    def start(self, seed: int, total: np.ndarray, count: int) -> None:
        self.rows = self.method.inform(self.rows, total, count)
        self.gain = self.method.start(self.rows, seed, total, count)

    def take(self, chosen: Picked) -> None:
        """Tells the block what was chosen."""
        if len(chosen.number) and len(self.number):
            self.method.take(self.gain, self.rows, self.number, chosen)
            self.free[self.place_of(chosen.number)] = False

    def offer(self, count: int) -> tuple[Picked, Place | None]:
        """The block's best rows of those left, at most so many, and the place of the next."""
        left = np.flatnonzero(self.free)
        most = min(len(left), count + 1)
        best = left[top_rows(self.gain[left], self.rows.uid[left], most)]
        offered = self.picked(best)
        rest = offered.place(count) if len(best) > count else None
        return offered.take(np.arange(min(count, len(best)))), rest

    def picked(self, rows: np.ndarray) -> Picked:
        return Picked(self.number[rows], self.gain[rows], self.rows.take(rows))

    def place_of(self, number: np.ndarray) -> np.ndarray:
        """The block's rows among these numbers, in their order."""
        place = np.searchsorted(self.number, number)
        within = place < len(self.number)
        return place[within][self.number[place[within]] == number[within]]


def settle(
    method: Greedy, offers: Sequence[Picked], rests: Sequence[Place | None], room: int
) -> Picked:
    """The rows that come next, at least one and at most `room`, in order, from what blocks offer
    and the places of the best rows that they did not."""
    of = _sorted(offers)
    limit = min((rest for rest in rests if rest is not None), default=None)
    gain, free, order = of.gain.copy(), np.ones(len(of.number), bool), []
    earned = gain.copy()
    while len(order) < room and free.any():
        left = np.flatnonzero(free)
        row = int(left[top_rows(gain[left], of.rows.uid[left], 1)[0]])
        place = Picked(of.number, gain, of.rows).place(row)
        if order and limit is not None and place > limit:
            break
        order.append(row)
        free[row], earned[row] = False, gain[row]
        if not method.falls or gain[row] < 0:
            break
        if len(order) < room:
            one = np.array([row])
            last = Picked(of.number[one], earned[one], of.rows.take(one))
            method.take(gain, of.rows, of.number, last)
    return Picked(of.number, earned, of.rows).take(order)


def follow(method: Greedy, given: Sequence[Picked], number: np.ndarray) -> Picked:
    """Rows that are chosen already, in the order of their numbers here, with the gain that each
    had in its turn. given: these rows, from each block."""
    of = _sorted(given)
    gain, earned, order = of.gain.copy(), of.gain.copy(), np.searchsorted(of.number, number)
    for row in order:
        earned[row] = gain[row]
        one = np.array([row])
        last = Picked(of.number[one], earned[one], of.rows.take(one))
        method.take(gain, of.rows, of.number, last)
    return Picked(of.number, earned, of.rows).take(order)


def chosen_again(given: Sequence[Picked], number: np.ndarray, gain: np.ndarray) -> Picked:
    """Rows that were chosen in one turn, in their order, with the gains that they had in it.
    given: these rows, from each block."""
    of = _sorted(given)
    rows = of.rows.take(np.searchsorted(of.number, number))
    return Picked(number, gain, rows)


def greedy_turns(
    method: Greedy,
    pool: Pool,
    number: np.ndarray,
    k: int,
    seed: int,
    *,
    kept: np.ndarray | None = None,
    cuts: Sequence[int] = (),
    offers: int = OFFERS,
) -> Iterator[Picked]:
    """The k rows that a greedy method keeps, in the order of choosing, in this process: as many at
    a time as are chosen before all blocks are told.

    number: (n,) ascending, the rows of the pool that take part; kept: numbers of some of them that
    are chosen already, in their order, and shape what follows; cuts: where blocks begin, beside 0,
    offers: rows offered at a time; the rows and their order depend on neither.
    """
    ends = zip([0, *cuts], [*cuts, len(number)], strict=True)
    blocks = [Block(method, pool.take(number[a:b]), number[a:b]) for a, b in ends if b > a]
    total = sum((block.survey() for block in blocks), np.int64(0))
    for block in blocks:
        block.start(seed, np.asarray(total), len(number))
    for some in batches(kept, offers):
        given = [block.picked(block.place_of(np.sort(some))) for block in blocks]
        followed = follow(method, given, some)
        for block in blocks:
            block.take(followed)
    room, count = k, offers if method.falls else 1
    while room:
        told = [block.offer(min(count, room)) for block in blocks]
        chosen = settle(method, [o for o, _ in told], [r for _, r in told], room)
        room -= len(chosen.number)
        yield chosen
        for block in blocks:
            block.take(chosen)


def together(turns: Iterable[Picked]) -> Picked:
    """What was chosen in one turn after another, of which there is at least one, without its
    columns."""
    return _joined([Picked(c.number, c.gain, c.rows.restrict(())) for c in turns])


def batches(kept: np.ndarray | None, size: int) -> list[np.ndarray]:
    """Numbers of rows in lists of at most this size."""
    return [] if kept is None else [kept[i : i + size] for i in range(0, len(kept), size)]


def _sorted(offers: Sequence[Picked]) -> Picked:
    of = _joined([o for o in offers if len(o.number)])
    return of.take(np.argsort(of.number))


def _joined(some: Sequence[Picked]) -> Picked:
    return Picked(
        np.concatenate([s.number for s in some]),
        np.concatenate([s.gain for s in some]),
        joined([s.rows for s in some]),
    )
