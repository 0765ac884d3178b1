"""A method that needs all rows, over the cluster: a task for each group, or for each partition of
each group, which holds those rows alone. The answer is that of one process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from coreset_ray.core.alone import in_turns
from coreset_ray.core.pool import NEIGHBOR, Pool, joined
from coreset_ray.core.selection import Selection
from coreset_ray.core.threads import one_thread
from coreset_ray.core.whole_set import Given, WholeSet, choose_among, parts_of
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.progress import Progress


@dataclass(frozen=True)
class Work:
    """parts: rows of each, in the order that numbers rows; group: the column that says which
    group a row is of; partitions: of each group."""

    method: WholeSet
    seed: int
    files: PoolFiles
    parts: Mapping[str, int]
    group: str | None
    given: Given
    partitions: int


def choose_from_all(
    method: WholeSet,
    seed: int,
    files: PoolFiles,
    parts: Mapping[str, int],
    shares: Sequence[int],
    given: Given,
    *,
    group: str | None,
    partitions: int,
) -> Selection:
    """The rows chosen, by number, in their order; arguments as in `choose_greedily`.

    given.kept: numbers of rows that are chosen already.
    """
    work = ray.put(Work(method, seed, files, parts, group, given, partitions))
    wanted = [(g, share) for g, share in enumerate(shares) if share]
    with Progress("select", len(wanted), "groups") as progress:
        tasks = [_group(work, g, share, partitions) for g, share in wanted]
        found = []
        for task in tasks:
            found.append(ray.get(task))
            progress.update(len(found))
    return in_turns(found)


def _group(work: Any, group: int, share: int, partitions: int) -> ray.ObjectRef:
    """What is chosen in one group, in one round or in two."""
    if partitions == 1:
        return _choose.remote(work, group, share, None)
    first = [_choose.remote(work, group, share, i) for i in range(partitions)]
    return _choose.remote(work, group, share, None, *first)


@ray.remote(num_cpus=1, max_retries=3)
def _choose(work: Work, group: int, k: int, partition: int | None, *first: Selection) -> Selection:
    """Of the rows of a group; those of one partition; or, given what was chosen of each, those."""
    one_thread()
    pool, number = _read(work, group, partition, first)
    if not len(np.setdiff1d(number, work.given.kept)):  # a partition that got none of a few
        return Selection(np.empty(0, np.int64), np.empty(0), np.empty(0))
    place = np.searchsorted(number, work.given.kept).clip(max=len(number) - 1)
    own = place[number[place] == work.given.kept]
    given = Given(own, work.given.target)
    found = choose_among(
        *(work.method, pool, np.arange(len(pool)), min(k, len(pool) - len(own)), work.seed, given)
    )
    return Selection(number[found.rows], found.gains, found.weights)


def _read(
    work: Work, group: int, partition: int | None, first: Sequence[Selection]
) -> tuple[Pool, np.ndarray]:
    """The rows that take part, and their numbers in the pool, ascending."""
    chosen = np.concatenate([work.given.kept, *(c.rows for c in first)]) if first else None
    pools, numbers, start = [], [], 0
    for part, rows in work.parts.items():
        pool = work.files.read(part, work.method.needs)
        number = np.arange(start, start + rows)
        here = work.files.group_of(part, rows, work.group) == group
        if partition is not None:
            own = parts_of(pool.uid, np.arange(rows), work.given.kept[:0], work.partitions)
            here &= np.isin(np.arange(rows), own[partition]) | np.isin(number, work.given.kept)
        if chosen is not None:
            here &= np.isin(number, chosen)
        pools.append(pool.take(np.flatnonzero(here)))
        numbers.append(number[here])
        start += rows
    return _renumbered(joined(pools), np.concatenate(numbers)), np.concatenate(numbers)


def _renumbered(pool: Pool, number: np.ndarray) -> Pool:
    """Neighbours counted in these rows, -1 where they are none of them."""
    if NEIGHBOR not in pool.columns:
        return pool
    neighbor = pool.columns[NEIGHBOR]
    place = np.searchsorted(number, neighbor).clip(max=max(len(number) - 1, 0))
    here = number[place] == neighbor
    return Pool(pool.uid, {**pool.columns, NEIGHBOR: np.where(here, place, -1)})
