"""Replicas of the pool: each holds all its rows, in one shard or several, and takes any draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from coreset_ray.core.columns import Spread, finish_spread, middle_ranks
from coreset_ray.core.method import Sampled
from coreset_ray.core.ranks import RankSearch, values_of
from coreset_ray.distributed.shard import Conductor, RowShard, Shard
from coreset_ray.io.ledger import Chunk, Ledger, Record, SumFile, new_name


@dataclass(frozen=True)
class Pool:
    """What replicas are made of. cpus, gpus: of each shard's actor."""

    table: str
    shards: Sequence[RowShard]
    cpus: float
    gpus: float = 0.0


@dataclass
class Replica:
    """Actors that hold all rows between them, and which draws they hold the sum of."""

    actors: list[Any]
    lead: Any
    name: str = field(default_factory=new_name)
    chunks: list[Chunk] = field(default_factory=list)
    committed: Record | None = None
    next_commit: float = 0.0
    speed: float = 0.0

    def commit(self, ledger: Ledger, shards: Sequence[RowShard]) -> None:
        """Writes the sum of all draws so far; it takes the place of what was written before."""
        if not self.chunks or (self.committed and len(self.committed.chunks) == len(self.chunks)):
            return
        name = new_name()
        files = tuple(SumFile(f"{name}-{i}.npy", s.parts, s.rows) for i, s in enumerate(shards))
        ray.get([a.save.remote(f.name) for a, f in zip(self.actors, files, strict=True)])
        before, self.committed = self.committed, Record(self.name, tuple(self.chunks), files)
        ledger.commit(self.committed)
        if before:
            ledger.sweep(before.files)

    def end(self) -> None:
        for actor in {*self.actors, self.lead}:
            ray.kill(actor)


def new_replica(pool: Pool, method: Sampled) -> Replica:
    """Its actors, which come up wherever and whenever there is room."""
    actors = [
        Shard.options(num_cpus=pool.cpus, num_gpus=pool.gpus).remote(  # type: ignore[attr-defined]
            shard, pool.table
        )
        for shard in pool.shards
    ]
    lead = actors[0] if len(actors) == 1 else Conductor.remote(method, actors)  # type: ignore[attr-defined]
    return Replica(actors, lead)


def survey(actors: Sequence[Any], rows: int) -> tuple[Spread, np.ndarray]:
    """The spread of a pool of so many rows and the sample that guesses radii, by the actors that
    hold its shards, which lay out its values on the way.

    Exact whatever the shards: minima, maxima and whole-number sums are merged, and the median is
    found by counting. The driver holds numbers by dimension, none by row.
    """
    if all(ray.get([a.laid_out.remote() for a in actors])):
        return ray.get(actors[0].spread.remote())
    lows, highs = zip(*ray.get([a.extremes.remote() for a in actors]), strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    search = RankSearch(np.tile(middle_ranks(rows), (len(low), 1)), np.uint32)
    while not search.done:
        question = search.question()
        search.answer(np.sum(ray.get([a.digits.remote(*question) for a in actors]), axis=0))
    mode = values_of(search.found).astype(float).mean(axis=1)
    sums = ray.get([a.moments.remote(low, high) for a in actors])
    moments = np.array(sums, object).sum(axis=0)
    sample = np.concatenate(ray.get([a.sample.remote() for a in actors]), axis=1)
    return finish_spread(low, mode, high, moments, rows), sample
