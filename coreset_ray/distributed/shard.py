"""Actors that hold a pool's rows: one for each shard of rows of each replica of the pool."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from coreset_ray.core.checksum import checksum
from coreset_ray.core.columns import Columns, Spread, extremes_of, moments_of
from coreset_ray.core.method import Sampled
from coreset_ray.core.ranks import count_digits, ordered_bits
from coreset_ray.core.run import empty_total, resume
from coreset_ray.io.filesystem import locate
from coreset_ray.io.layout import (
    open_columns,
    open_values,
    sample_here,
    sole,
    write_index,
    write_values,
)
from coreset_ray.io.ledger import Ledger
from coreset_ray.io.tables import PartedTable


@dataclass(frozen=True)
class RowShard:
    """Rows of the pool: those of these parts, one after another. folder: where each machine that
    works on it lays them out; rows: of each part; pool: rows of the whole pool."""

    folder: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    pool: int

    @property
    def size(self) -> int:
        return sum(self.rows)


@ray.remote(max_restarts=0)
class Shard:
    """The rows of one shard, and the sum of the draws it has taken part in."""

    def __init__(self, shard: RowShard, table: str):
        self.shard, self.table = shard, PartedTable(locate(table))
        self.folder = Path(shard.folder)

    # Laying out

    def laid_out(self) -> bool:
        return (self.folder / "layout.json").exists()

    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """Lays out the values; their minimum and maximum by dimension."""
        with sole(self.folder):
            write_values(self.folder, self.table, self.shard.parts, self.shard.size)
        return extremes_of(open_values(self.folder)[0])

    def digits(self, found: np.ndarray, shift: int) -> np.ndarray:
        """(m, r, 256) counts for a rank search in every dimension."""
        value = open_values(self.folder)[0]
        pairs = zip(value, found, strict=True)
        return np.stack([count_digits(ordered_bits(c), f, shift) for c, f in pairs])

    def moments(self, low: np.ndarray, high: np.ndarray) -> list[tuple[int, int]]:
        value = open_values(self.folder)[0]
        return [moments_of(c, a, b) for c, a, b in zip(value, low, high, strict=True)]

    def sample(self) -> np.ndarray:
        return sample_here(self.folder, self.shard.pool)

    def spread(self) -> tuple[Spread, np.ndarray]:
        """What a finished layout holds of the whole pool, to lay out the shard elsewhere."""
        columns = open_columns(self.folder)
        return columns.spread, np.asarray(columns.index.sample)

    def finish(self, known: tuple[Spread, np.ndarray]) -> None:
        """Lays out whatever is missing, given what is known of the whole pool."""
        if not self.laid_out():
            with sole(self.folder):
                write_values(self.folder, self.table, self.shard.parts, self.shard.size)
                write_index(self.folder, *known, self.shard.pool)

    # Drawing

    def start(
        self, known: tuple[Spread, np.ndarray], method: Sampled, seed: int, ledger: str
    ) -> dict[str, Any]:
        """Makes ready to draw; the method's facts of the pool."""
        self.finish(known)
        self.method, self.seed, self.ledger = method, seed, Ledger(locate(ledger))
        self.columns: Columns = open_columns(self.folder)
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
        before, self.checksum = (
            self.checksum,
            int(checksum(self.columns.index.uid, self.total)),
        )
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
