"""Replicas of the pool: each holds all its rows, in one shard or several, and takes any draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray

from coreset_ray.core.columns import Spread
from coreset_ray.core.method import Sampled
from coreset_ray.core.survey import survey
from coreset_ray.distributed.shard import Conductor, Shard
from coreset_ray.io.ledger import Chunk, Ledger, Record, SumFile, new_name
from coreset_ray.io.row_files import RowShard


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


def agreed(actors: Sequence[Any], rows: int) -> tuple[Spread, np.ndarray]:
    """What is known of a pool of so many rows, by the actors that hold its shards, which lay out
    its values on the way."""

    def ask(step: str, *arguments: Any) -> list[Any]:
        return ray.get([a.tell.remote(step, *arguments) for a in actors])

    return ask("known")[0] if all(ask("laid_out")) else survey(ask, rows)
