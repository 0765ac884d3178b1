"""A greedy method over the cluster: actors hold blocks of the pool, offer their best rows, and are
told what was chosen. The answer is that of one process, whatever their number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray

from coreset_ray.core.alone import in_turns
from coreset_ray.core.greedy import OFFERS, Block, Greedy, Picked, Place, batches, follow, settle
from coreset_ray.core.pool import joined
from coreset_ray.core.threads import one_thread
from coreset_ray.core.whole_set import Choice
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.row_files import row_shards


def choose_greedily(
    method: Greedy,
    seed: int,
    files: PoolFiles,
    parts: Mapping[str, int],
    shares: Sequence[int],
    kept: np.ndarray,
    *,
    group: str | None,
    actors: int,
) -> Choice:
    """The rows chosen, by number, in their order.

    parts: rows of each, in the order that numbers rows. shares: how many to choose in each group;
    group: the column that says which group a row is of. kept: numbers of rows that are chosen
    already. An actor that dies fails the run.
    """
    shards = row_shards(dict(parts), actors, "")
    firsts = np.cumsum([0, *(shard.size for shard in shards)])[:-1].tolist()
    holders: list[Any] = [
        Holder.remote(method, seed, files, shard.parts, first, group)  # type: ignore[attr-defined]
        for shard, first in zip(shards, firsts, strict=True)
    ]
    try:
        with Progress("select", sum(shares), "images") as progress:
            found, done = [], 0
            for g, share in enumerate(shares):
                if not share:
                    continue
                found.append(_choose(method, holders, g, share, kept, progress, done))
                done += share
    finally:
        for holder in holders:
            ray.kill(holder)
    chosen = in_turns(found)
    return Choice(chosen.rows, chosen.gains, chosen.weights)


def _choose(
    method: Greedy,
    holders: list[Any],
    group: int,
    share: int,
    kept: np.ndarray,
    progress: Progress,
    done: int,
) -> Choice:
    """Of one group."""
    surveys, counts, own = zip(
        *ray.get([h.begin.remote(group, kept) for h in holders]), strict=True
    )
    ray.get([h.start.remote(sum(surveys), sum(counts)) for h in holders])
    mine = kept[np.isin(kept, np.concatenate(own))]
    for some in batches(mine, OFFERS):
        given = ray.get([h.picked.remote(np.sort(some)) for h in holders])
        told = ray.put(follow(method, given, some))
        ray.get([h.take.remote(told) for h in holders])
    number, gain, room, last = [], [], share, None
    while room:
        count = min(OFFERS, room) if method.falls else 1
        told = ray.put(last)
        answers = ray.get([h.next.remote(told, count) for h in holders])
        last = settle(method, [a for a, _ in answers], [r for _, r in answers], room)
        number.append(last.number)
        gain.append(last.gain)
        room -= len(last.number)
        progress.update(done + share - room)
    return Choice(np.concatenate(number), np.concatenate(gain), np.ones(share))


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
class Holder:
    """A block of consecutive rows of the pool; first: the number of its first row."""

    block: Block

    def __init__(
        self,
        method: Greedy,
        seed: int,
        files: PoolFiles,
        parts: tuple[str, ...],
        first: int,
        group: str | None,
    ):
        one_thread()
        self.method, self.seed, self.first = method, seed, first
        pools = [files.read(part, method.needs) for part in parts]
        groups = [files.group_of(p, len(of), group) for p, of in zip(parts, pools, strict=True)]
        self.pool, self.group = joined(pools), np.concatenate(groups)

    def begin(self, group: int, kept: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
        """The survey of the group's rows here, how many they are, and which are kept."""
        rows = np.flatnonzero(self.group == group)
        self.block = Block(self.method, self.pool.take(rows), self.first + rows)
        return self.block.survey(), len(rows), kept[np.isin(kept, self.block.number)]

    def start(self, total: np.ndarray, count: int) -> None:
        self.block.start(self.seed, total, count)

    def picked(self, number: np.ndarray) -> Picked:
        return self.block.picked(self.block.place_of(number))

    def take(self, chosen: Picked) -> None:
        self.block.take(chosen)

    def next(self, chosen: Picked | None, count: int) -> tuple[Picked, Place | None]:
        """The block's offers once it was told what was chosen last."""
        if chosen is not None:
            self.block.take(chosen)
        return self.block.offer(count)
