"""Methods that choose with all rows at hand; large pools are cut into partitions first."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.limits import COPIES
from coreset_ray.core.method import Method
from coreset_ray.core.pool import Pool, in_uid_order
from coreset_ray.core.random import uid_uniform
from coreset_ray.core.selection import Selection

_PARTITION = 11  # the use of random numbers
NO_PARTITIONS = (
    "partitions={}: what this method chooses is weighed by all rows, which no part holds: leave it "
    "out, or share the budget out over groups with select.balance"
)


@dataclass(frozen=True)
class Given:
    """What a choice starts from. kept: (w,) int64, rows of the pool that are chosen already, none
    of which is chosen again; target: (t, m), embeddings of images that the choice should resemble,
    or None."""

    kept: np.ndarray
    target: np.ndarray | None = None


class WholeSet(Method):
    """Chooses k rows of those at hand.

    nested: a smaller budget's choice is the beginning of a larger one's. continues: what is chosen
    beside rows kept is what would have followed them. targeted: it asks for a target set. weighs:
    the weight of a row depends on all that are chosen. copies: of its columns that a choice holds
    at once, at most.
    """

    nested: ClassVar[bool] = True
    continues: ClassVar[bool] = False
    targeted: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    copies: ClassVar[int] = COPIES

    def beside(self, width: Mapping[str, int]) -> int:
        """Bytes of each row that a choice holds at once beside these copies, at most. width: as in
        `scratch`."""
        return 0

    def scratch(self, k: int, width: Mapping[str, int]) -> int:
        """Bytes that a choice grows to beside its rows, where k are chosen or kept, if many.
        width: numbers of a row in each column needed."""
        return 0

    def work(self, n: int, k: int) -> float:
        """How the time of a choice of k among n rows grows with both, in any unit."""
        return float(n)

    @abstractmethod
    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        """k rows, none of them kept already. pool: in ascending order of uid, with the columns
        needed; `knn.neighbor` counts its rows, -1 where a neighbour is none of them."""


def choose_whole(
    method: WholeSet,
    pool: Pool,
    number: np.ndarray,
    k: int,
    seed: int,
    given: Given,
    partitions: int = 1,
) -> Selection:
    """The k of these rows that the method keeps, as numbers of the pool.

    number: (n,) the rows that take part; given.kept: numbers of rows, of those that take part.
    partitions: with more than one, each of so many parts of the rows chooses k by itself, and the
    method then chooses among what they chose (two rounds, as GreeDi: Mirzasoleiman et al., 2013).
    Raises `ValueError` for several partitions where a weight counts all rows. What is worth how
    much is judged by the rows of each round alone, so that GreeDi's bound does not hold.
    """
    if partitions > 1 and method.weighs:
        raise ValueError(NO_PARTITIONS.format(partitions))
    view = pool.restrict(method.needs)
    rounds = parts_of(pool.uid, number, given.kept, partitions)

    def of(rows: np.ndarray, k: int) -> Selection:
        return choose_among(method, view, rows, k, seed, given)

    return two_rounds(of, rounds, given.kept, k)


def two_rounds(
    choose: Callable[[np.ndarray, int], Selection],
    parts: Sequence[np.ndarray],
    kept: np.ndarray,
    k: int,
) -> Selection:
    """What `choose` takes of all that it took of each part."""
    if len(parts) == 1:
        return choose(parts[0], k)
    free = [len(part) - int(np.isin(part, kept).sum()) for part in parts]
    first = [choose(part, min(k, f)).rows for part, f in zip(parts, free, strict=True) if f]
    return choose(np.unique(np.concatenate([kept, *first])), k)


def parts_of(
    uid: np.ndarray, number: np.ndarray, kept: np.ndarray, partitions: int
) -> list[np.ndarray]:
    """The rows in as many parts, each row in one by its uid alone; those kept are in every part."""
    if partitions == 1:
        return [number]
    where = (uid_uniform(0, uid[number], _PARTITION) * partitions).astype(int)
    return [np.union1d(number[where == i], kept) for i in range(partitions)]


def choose_among(
    method: WholeSet, pool: Pool, number: np.ndarray, k: int, seed: int, given: Given
) -> Selection:
    """What the method keeps of these rows of the pool: numbers in, numbers out."""
    view, number, place = in_uid_order(pool, number)
    kept = place[given.kept]
    found = method.choose(view, k, seed, Given(kept, given.target))
    assert len(found.rows) == k and not np.isin(found.rows, kept).any(), f"{method} broke its word"
    return Selection(number[found.rows], found.gains, found.weights)
