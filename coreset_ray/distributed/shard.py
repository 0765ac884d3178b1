"""Actors that hold a pool's rows: one for each shard of rows of each replica of the pool."""

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from coreset_ray.core.checksum import checksum
from coreset_ray.core.columns import Columns, Spread
from coreset_ray.core.method import Sampled
from coreset_ray.core.run import empty_total, resume
from coreset_ray.io.filesystem import locate
from coreset_ray.io.ledger import Ledger
from coreset_ray.io.row_files import RowFiles, RowShard
from coreset_ray.io.tables import PartedTable


@ray.remote(max_restarts=0)
class Shard:
    """The rows of one shard, and the sum of the draws it has taken part in."""

    def __init__(self, shard: RowShard, table: str):
        self.files = RowFiles(shard, PartedTable(locate(table)))

    def tell(self, step: str, *arguments: Any) -> Any:
        """What a method of `RowFiles` says."""
        return getattr(self.files, step)(*arguments)

    def start(
        self, known: tuple[Spread, np.ndarray], method: Sampled, seed: int, ledger: str
    ) -> dict[str, Any]:
        """Makes ready to draw; the method's facts of the pool."""
        self.files.finish(known)
        self.method, self.seed, self.ledger = method, seed, Ledger(locate(ledger))
        self.columns: Columns = self.files.columns()
        if ray.get_gpu_ids():
            from coreset_ray.core.batched import resident

            self.columns = replace(self.columns, resident=resident(self.columns.index, "cuda"))
        method.check(self.columns)
        self.total = empty_total(method, self.columns)
        self.checksum = 0
        return method.facts(self.columns)

    def tally(self, first: int, last: int) -> tuple[int, float]:
        """Adds these draws; their checksum, and the seconds they took. Needs all rows."""
        start = time.monotonic()
        self.method.tally(self.columns, self.seed, first, last, self.total)
        return self.added(), time.monotonic() - start

    def begin(self, first: int, last: int) -> Any:
        """Starts these draws in step with other shards; the first message, None at the end."""
        self.run: Generator[Any, Any, None] = self.method.tally_shard(
            self.columns, self.seed, first, last, self.total
        )
        return next(self.run, None)

    def proceed(self, agreed: Any) -> Any:
        """The next message, None at the end."""
        return resume(self.run, agreed)

    def added(self) -> int:
        """The checksum of what was added since this was last asked."""
        before = self.checksum
        self.checksum = int(checksum(self.columns.index.uid, self.total))
        return (self.checksum - before) % 2**64

    def save(self, name: str) -> None:
        self.ledger.write_sum(name, self.total)


@ray.remote(num_cpus=0, max_restarts=0)
class Conductor:
    """Keeps the shards of one replica in step. Holds messages of draws, nothing of the pool."""

    def __init__(self, method: Sampled, shards: Sequence[Any]):
        self.method, self.shards = method, shards

    def start(self, *arguments: Any) -> dict[str, Any]:
        return ray.get([s.start.remote(*arguments) for s in self.shards])[0]

    def tally(self, first: int, last: int) -> tuple[int, float]:
        """Has every shard add these draws; their checksum, and the seconds they took."""
        start = time.monotonic()
        messages = ray.get([s.begin.remote(first, last) for s in self.shards])
        while messages[0] is not None:
            agreed = ray.put(self.method.agree(messages))
            messages = ray.get([s.proceed.remote(agreed) for s in self.shards])
        sums = ray.get([s.added.remote() for s in self.shards])
        return sum(sums) % 2**64, time.monotonic() - start
