"""What one shard of a pool answers when a k-means asks: sums over its rows, and a few rows.

A shard may be lost at any time: all it keeps between questions is made anew from its parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import faiss
import numpy as np

from coreset_ray.clustering.kmeans import Nearest, Space, Tally, tally
from coreset_ray.core.columns import extremes_of, moments_of
from coreset_ray.core.random import uid_uniform

Part = Callable[[], tuple[np.ndarray, np.ndarray]]  # uid (n, 2) uint64 and embedding (n, m)

HELD = 2 << 30  # bytes of rows that a shard keeps; what is beyond is read anew at each question
_ANY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Level:
    """space: what rows are; coarse: (g, m) centroids whose clusters are the groups, None for one
    group; number: of the level, 0 or 1."""

    space: Space
    coarse: np.ndarray | None = None

    @property
    def use(self) -> int:
        """Where this level's random numbers start."""
        return 1 << 32 if self.coarse is None else 1 << 33


@dataclass(frozen=True)
class Centers:
    """Centroids, (c, m) float32, and the group of each, (c,)."""

    value: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class Picked:
    """Rows (p, m) with their groups (p,), uids (p, 2) and what they are sorted by, (p,)."""

    rows: np.ndarray
    group: np.ndarray
    uid: np.ndarray
    key: np.ndarray


def leading(picked: Sequence[Picked], most: np.ndarray) -> Picked:
    """The first rows of each group by key, ties to the smallest uid, no two of a group alike.

    most: rows of each group, (g,). In the order of group, key and uid.
    """
    rows, group, uid, key = (
        np.concatenate([getattr(p, name) for p in picked])
        for name in ("rows", "group", "uid", "key")
    )
    left, seen, kept = most.tolist(), set(), []
    for i in np.lexsort((uid[:, 1], uid[:, 0], key, group)).tolist():
        if left[g := int(group[i])] > 0 and (mark := (g, rows[i].tobytes())) not in seen:
            seen.add(mark)
            kept.append(i)
            left[g] -= 1
    return Picked(rows[kept], group[kept], uid[kept], key[kept])


class Shard:
    """Some parts of a pool, read one after another; held: bytes of rows that are kept."""

    def __init__(self, parts: Sequence[Part], *, gpu: bool = False, held: int = HELD):
        self.parts, self.room = parts, held
        self.resources: Any = faiss.StandardGpuResources() if gpu else None
        self.held: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.group: dict[int, np.ndarray] = {}  # of each part's rows, at this level
        self.priced: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}

    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest value of each dimension, (m,) float64."""
        lows, highs = zip(*(extremes_of(read()[1].T) for read in self.parts), strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)

    def moments(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """(m, 2) exact sums, of Python's integers, as `finish_spread` takes them."""
        return sum(_moments(read()[1], low, high) for read in self.parts)  # type: ignore[return-value]

    def first(self, level: Level, most: np.ndarray, seed: int, below: float = 1.0) -> Picked:
        """The rows of each group with the smallest random numbers, so many, (g,), at most, and
        only numbers below a bound. Begins a level."""
        self.group.clear()
        self.priced.clear()
        found: list[Picked] = []
        for i in range(len(self.parts)):
            uid, rows, group = self._part(level, i)
            number = uid_uniform(seed, uid, level.use)
            some = np.flatnonzero(number < below)
            picked = Picked(rows[some], group[some], uid[some], number[some])
            found = [leading([*found, picked], most)]
        return found[0]

    def price(self, level: Level, centers: Centers) -> Tally:
        """Rows and squared distances by candidate, without values."""
        total: list[Tally] = []
        for i in range(len(self.parts)):
            _, rows, _, *found = self._priced(level, centers, i)
            sums = tally(level.space, len(centers.value), rows[:, :0], *found)
            total = [reduce(add, [*total, sums])]
        return total[0]

    def draw(
        self, level: Level, centers: Centers, odds: np.ndarray, seed: int, turn: int
    ) -> Picked:
        """Rows drawn each with odds of its group, (g,), times its squared distance."""
        drawn = []
        for i in range(len(self.parts)):
            uid, rows, group, _, cost = self._priced(level, centers, i)
            some = np.flatnonzero(uid_uniform(seed, uid, level.use + turn) < cost * odds[group])
            drawn.append(Picked(rows[some], group[some], uid[some], np.zeros(len(some))))
        return leading(drawn, np.full(len(odds), _ANY))

    def tally(self, level: Level, centers: Centers) -> Tally:
        """Rows, sums of values and squared distances by cluster."""
        nearest, total = self._nearest(centers), []
        for i in range(len(self.parts)):
            _, rows, group = self._part(level, i)
            sums = tally(level.space, len(centers.value), rows, *nearest.assign(rows, group))
            total = [reduce(add, [*total, sums])]
        return total[0]

    def farthest(self, level: Level, centers: Centers, most: np.ndarray) -> Picked:
        """The rows farthest from their centroids, so many of each group, (g,), at most."""
        nearest, found = self._nearest(centers), []
        for i in range(len(self.parts)):
            uid, rows, group = self._part(level, i)
            cost = nearest.assign(rows, group)[1]
            some = np.flatnonzero((cost > 0) & (most[group] > 0))
            picked = Picked(rows[some], group[some], uid[some], -cost[some])
            found = [leading([*found, picked], most)]
        return found[0]

    def assigned(self, level: Level, centers: Centers, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Cluster (n,) int32 and distance (n,) float32 of the rows of part i."""
        _, rows, group = self._part(level, i)
        cluster, cost = self._nearest(centers).assign(rows, group)
        return cluster, level.space.distance(cost)

    def _nearest(self, centers: Centers) -> Nearest:
        return Nearest(centers.value, centers.group, self.resources)

    def _part(self, level: Level, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uid, rows and group of part i, kept while there is room."""
        if i not in self.held:
            uid, embedding = self.parts[i]()
            rows = level.space.rows(embedding)
            if rows.nbytes <= self.room:
                self.held[i], self.room = (uid, rows), self.room - rows.nbytes
        else:
            uid, rows = self.held[i]
        if i not in self.group:
            alone = np.zeros(len(rows), np.int32)
            if level.coarse is not None:
                coarse = Centers(level.coarse, np.zeros(len(level.coarse), np.int32))
                alone = self._nearest(coarse).assign(rows, alone)[0]
            self.group[i] = alone
        return uid, rows, self.group[i]

    def _priced(self, level: Level, centers: Centers, i: int) -> tuple[np.ndarray, ...]:
        """uid, rows and group of part i, its rows' nearest candidate and squared distance; only
        candidates that were added since are looked at."""
        uid, rows, group = self._part(level, i)
        none = 0, np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
        seen, cluster, cost = self.priced.get(i, none)
        if seen < len(centers.value):
            added = self._nearest(Centers(centers.value[seen:], centers.group[seen:]))
            other, apart = added.assign(rows, group)
            cluster = np.where(apart < cost, other + np.int32(seen), cluster)
            cost = np.minimum(apart, cost)
            self.priced[i] = len(centers.value), cluster, cost
        return uid, rows, group, cluster, cost


def _moments(embedding: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    columns = np.ascontiguousarray(embedding.T)
    return np.array([moments_of(*c) for c in zip(columns, low, high, strict=True)], object)
