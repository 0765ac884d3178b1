"""k-means over shards: what is asked of them, and what is made of their answers.

The start is k-means‖ (Bahmani et al. 2012): rows drawn with odds of their squared distance to those
drawn before, twice as many as clusters at each of five turns, then a weighted k-means++ over these
candidates. Then Lloyd's iteration. Very many clusters are found in two levels: √c coarse ones, and
within each, all at once, its share of c in proportion to its inertia, which many dimensions make
nearly the best (Zador 1982: inertia to the power m / (m + 2)), and copies of one image take one
cluster. Ours: all sums are of whole numbers, random numbers are functions of a row's uid,
and a cluster left empty starts again at the row farthest from its centroid: neither shards nor the
order of rows change a bit. Cost: a pass over the rows an iteration, and the start about ten. Holds
centroids, candidates and sums by centroid.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, reduce
from math import isqrt
from operator import add
from typing import Any

import numpy as np

from coreset_ray.clustering.kmeans import Space, Tally, centroids_of, seeds, shares, space_of
from coreset_ray.clustering.kmeans_shard import Centers, Level, Picked, Shard, leading
from coreset_ray.core.columns import finish_spread
from coreset_ray.core.random import draw_words, unit_interval

Ask = Callable[..., Iterable[Any]]  # (step, *arguments) → what each shard answers, in any order
Once = Callable[[str, Callable[[], "Found"]], "Found"]

_TURNS = 5
_OVER = 2.0  # candidates drawn at each turn, for each cluster
_DRAWS = 4  # tried for each seed
_ANY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Clustering:
    """count: clusters; spherical: by direction, else Euclidean; standardize: by the pool's mean and
    deviation first; tolerance: the share of the inertia that an iteration has to save for another;
    single: most clusters that are found in one level."""

    count: int
    spherical: bool = True
    standardize: bool = True
    iterations: int = 100
    tolerance: float = 1e-4
    seed: int = 0
    single: int = 4096

    def check(self, rows: int) -> None:
        """`ValueError` for what cannot be, with a pool of so many rows."""
        if not 2 <= self.count <= rows:
            raise ValueError(
                f"{self.count} clusters of a pool of {rows} images: ask for 2 at least and no more "
                "than there are images"
            )
        if self.iterations < 1 or not self.tolerance >= 0 or self.single < 2:
            raise ValueError(
                f"iterations={self.iterations}, tolerance={self.tolerance}, single={self.single}: "
                "expected at least 1, 0 and 2"
            )

    @property
    def coarse(self) -> int:
        """Clusters of a first level, 0 where there is none."""
        return isqrt(self.count) if self.count > self.single else 0


@dataclass(frozen=True)
class Found:
    """centers: of c clusters; size: rows of each, (c,); inertia: of each, (c,) float64, the sum of
    squared distances, or of 1 - cosine; converged: whether it stopped by itself."""

    centers: Centers
    size: np.ndarray
    inertia: np.ndarray
    iterations: int
    reseeded: int
    converged: bool


def find(
    ask: Ask, rows: int, wanted: Clustering, once: Once = lambda _, fit: fit()
) -> tuple[Level, list[Found]]:
    """The clusters of a pool of so many rows, the last of one or two levels, and what assigns rows
    to them. once: given the name and the making of a level's clusters, returns them.

    Raises `ValueError` where the pool has fewer rows that differ than clusters are wanted.
    """
    wanted.check(rows)
    level, weight, found = Level(space_for(ask, rows, wanted)), np.ones(1), []
    for name, count in [("coarse", wanted.coarse), ("centroids", wanted.count)]:
        if found:
            level, weight = Level(level.space, found[0].centers.value), found[0].inertia
        if count:
            found.append(once(name, partial(_cluster, ask, level, weight, wanted, count)))
    return level, found


def find_here(
    uid: np.ndarray, embedding: np.ndarray, wanted: Clustering
) -> tuple[Found, np.ndarray, np.ndarray]:
    """The clusters of a pool in memory, the cluster of each row (n,) int32, and its distance (n,)
    float32. uid: (n, 2) uint64; embedding: (n, m)."""
    shard = Shard([lambda: (uid, embedding)])
    level, found = find(lambda step, *told: [getattr(shard, step)(*told)], len(uid), wanted)
    return found[-1], *shard.assigned(level, found[-1].centers, 0)


def space_for(ask: Ask, rows: int, wanted: Clustering) -> Space:
    """The space of a pool of so many rows."""
    lows, highs = zip(*ask("extremes"), strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    moments = None
    if wanted.standardize:
        sums = reduce(add, ask("moments", low, high))
        spread = finish_spread(low, low, high, sums, rows)
        moments = spread.mean, spread.deviation
    return space_of(low, high, moments, spherical=wanted.spherical, rows=rows)


def _cluster(ask: Ask, level: Level, weight: np.ndarray, wanted: Clustering, count: int) -> Found:
    """So many clusters, over groups in proportion to their weights, (g,)."""
    return _refine(ask, level, _start(ask, level, weight, wanted, count), len(weight), wanted)


def _start(ask: Ask, level: Level, weight: np.ndarray, wanted: Clustering, count: int) -> Centers:
    groups = len(weight)
    one = np.ones(groups, np.int64)
    picked = leading([*ask("first", level, one, wanted.seed)], one)
    held, turn = Centers(picked.rows, picked.group), 0
    while True:
        sums: Tally = reduce(add, ask("price", level, held))
        rest = np.zeros(groups, np.int64)
        np.add.at(rest, held.group, sums.cost)
        there = np.bincount(held.group, minlength=groups)
        most = np.where(rest > 0, count, there)  # all rows of a group without rest are candidates
        if most.sum() < count:
            told = "standardised embeddings" if wanted.standardize else "embeddings"
            raise ValueError(
                f"{count} clusters: the pool has only {most.sum()} images whose {told} differ; "
                "ask for no more clusters (signals.clusters.count)"
            )
        share = shares(weight, most, count)
        if (turn >= _TURNS or not rest.any()) and (there >= share).all():
            break
        turn += 1
        unit = np.ldexp(1.0, level.space.cost_bits)
        odds = np.where(rest > 0, _OVER * share / np.maximum(rest, 1) * unit, 0.0)
        drawn = [*ask("draw", level, held, odds, wanted.seed, turn)]
        more = leading(drawn, np.full(groups, _ANY))
        held = Centers(
            np.concatenate([held.value, more.rows]), np.concatenate([held.group, more.group])
        )
    return _thinned(held, sums.size, share, level.use, wanted.seed)


def _thinned(held: Centers, weight: np.ndarray, share: np.ndarray, use: int, seed: int) -> Centers:
    """Of the candidates of each group its share, (g,), in the order of groups."""
    ends, chosen = np.cumsum([0, *share]), []
    for g in np.flatnonzero(share):
        here = np.flatnonzero(held.group == g)
        words = draw_words(seed, use + int(ends[g]), int(share[g]), _DRAWS)
        chosen.append(here[seeds(held.value[here], weight[here], unit_interval(words))])
    order = np.concatenate(chosen)
    return Centers(held.value[order], held.group[order])


def _refine(ask: Ask, level: Level, centers: Centers, groups: int, wanted: Clustering) -> Found:
    """Lloyd's iteration; what is returned of the clusters is as of the centers returned."""
    before, reseeded, turn = np.inf, 0, 0
    while True:
        turn += 1
        sums: Tally = reduce(add, ask("tally", level, centers))
        value, empty = centroids_of(level.space, sums)
        spent = float(sums.cost.sum())
        still = spent >= (1 - wanted.tolerance) * before or np.array_equal(value, centers.value)
        converged = bool(still and not empty.any())
        if converged or turn == wanted.iterations:
            inertia = level.space.total(sums.cost)
            return Found(centers, sums.size, inertia, turn, reseeded, converged)
        before = spent
        if empty.any():
            most = np.bincount(centers.group[empty], minlength=groups)
            far = leading([*ask("farthest", level, centers, most)], most)
            value, before = _reseeded(value, centers, empty, far), np.inf
            reseeded += len(far.group)
        centers = Centers(value, centers.group)


def _reseeded(value: np.ndarray, centers: Centers, empty: np.ndarray, far: Picked) -> np.ndarray:
    """Empty clusters of each group at its farthest rows, in their order; where there are not as
    many, at their place of before."""
    value = np.where(empty[:, None], centers.value, value)
    for g in np.unique(far.group):
        rows = far.rows[far.group == g]
        value[np.flatnonzero(empty & (centers.group == g))[: len(rows)]] = rows
    return value
