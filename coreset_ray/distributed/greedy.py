"""A greedy method over the cluster: actors hold blocks of the pool, offer their best rows, and are
told what was chosen. The answer is that of one process, whatever their number, and whatever dies:
what was chosen is kept in the driver, by number and gain, and new actors are told it again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray

from coreset_ray.core.alone import in_turns
from coreset_ray.core.greedy import (
    OFFERS,
    Block,
    Greedy,
    Picked,
    Place,
    batches,
    chosen_again,
    follow,
    settle,
)
from coreset_ray.core.pool import joined
from coreset_ray.core.selection import Selection
from coreset_ray.core.threads import one_thread
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.losses import LOST, Losses
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
) -> Selection:
    """The rows chosen, by number, in their order.

    parts: rows of each, in the order that numbers rows. shares: how many to choose in each group;
    group: the column that says which group a row is of. kept: numbers of rows that are chosen
    already.
    """
    shards = row_shards(dict(parts), actors, "")
    firsts = np.cumsum([0, *(shard.size for shard in shards)])[:-1].tolist()
    of = [(method, seed, files, s.parts, f, group) for s, f in zip(shards, firsts, strict=True)]
    with Progress("select", sum(shares), "images") as progress, _Crew(of) as crew:
        found, done = [], 0
        for g, share in enumerate(shares):
            if share:
                choice = _Choice(method, g, share, kept, progress, done)
                crew.see_through(choice)
                found.append(choice.selection())
                done += share
    return in_turns(found)


class _Crew:
    """The actors that hold the pool's blocks; all are made anew when one is lost."""

    def __init__(self, of: list[tuple[Any, ...]]):
        self.of, self.holders = of, list[Any]()

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *error: object) -> None:
        for holder in self.holders:
            ray.kill(holder)
        self.holders = []

    def see_through(self, choice: "_Choice") -> None:
        """Makes a choice, from where it stood when actors were lost."""
        losses = Losses("select")
        while True:
            self.holders = self.holders or [Holder.remote(*told) for told in self.of]  # type: ignore[attr-defined]
            before = choice.room
            try:
                return choice.go_on(self.holders)
            except LOST as error:
                if choice.room < before:
                    losses.got_on()
                losses.met(error)
                self.__exit__()


class _Choice:
    """The choice of one group, as far as it has got: numbers and gains, a list a turn."""

    def __init__(
        self,
        method: Greedy,
        group: int,
        share: int,
        kept: np.ndarray,
        progress: Progress,
        done: int,
    ):
        self.method, self.group, self.share, self.kept = method, group, share, kept
        self.progress, self.done = progress, done
        self.turns: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def room(self) -> int:
        return self.share - sum(len(number) for number, _ in self.turns)

    def selection(self) -> Selection:
        number, gain = (np.concatenate(some) for some in zip(*self.turns, strict=True))
        return Selection(number, gain, np.ones(self.share))

    def go_on(self, holders: list[Any]) -> None:
        """Chooses what is left, by actors that know nothing of this group."""
        self._start(holders)
        room, last = self.room, None
        while room:
            count = min(OFFERS, room) if self.method.falls else 1
            told = ray.put(last)
            answers = ray.get([h.next.remote(told, count) for h in holders])
            last = settle(self.method, [a for a, _ in answers], [r for _, r in answers], room)
            self.turns.append((last.number, last.gain))
            room -= len(last.number)
            self.progress.update(self.done + self.share - room)

    def _start(self, holders: list[Any]) -> None:
        """Tells what is chosen already: before this group, and in it before actors were lost."""
        method = self.method
        begun = [h.begin.remote(self.group, self.kept) for h in holders]
        surveys, counts, own = zip(*ray.get(begun), strict=True)
        ray.get([h.start.remote(sum(surveys), sum(counts)) for h in holders])
        mine = self.kept[np.isin(self.kept, np.concatenate(own))]
        for some in batches(mine, OFFERS):
            given = ray.get([h.picked.remote(np.sort(some)) for h in holders])
            _tell(holders, follow(method, given, some))
        for number, gain in self.turns:
            given = ray.get([h.picked.remote(np.sort(number)) for h in holders])
            _tell(holders, chosen_again(given, number, gain))


def _tell(holders: list[Any], chosen: Picked) -> None:
    told = ray.put(chosen)
    ray.get([h.take.remote(told) for h in holders])


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
