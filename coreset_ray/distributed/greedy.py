"""A greedy method over the cluster: actors hold blocks of the pool, and each is told of every image
chosen. The answer is that of one process, whatever their number."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.greedy import Block, Greedy, Offer, best_of
from coreset_ray.core.pool import joined
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.row_files import row_shards
from coreset_ray.io.tables import MANIFEST, PartedTable, read_table, write_table

_KEPT = ["uid", "shard", "key"]


def choose_greedily(
    method: Greedy[Any],
    seed: int,
    files: PoolFiles,
    parts: Mapping[str, int],
    k: int,
    manifest: Location,
    *,
    actors: int,
) -> None:
    """Writes the manifest of the k rows chosen, in their order; the score is the gain.

    parts: rows of each, in the order that numbers rows. One round over the actors for each row.
    An actor that dies fails the run.
    """
    shards = row_shards(dict(parts), actors, "")
    firsts = np.cumsum([0, *(shard.size for shard in shards)])[:-1].tolist()
    holders: list[Any] = [
        Holder.remote(method, seed, files, shard.parts, first)  # type: ignore[attr-defined]
        for shard, first in zip(shards, firsts, strict=True)
    ]
    chosen: list[tuple[int, float]] = []
    last: Offer | None = None
    try:
        with Progress("select", k, "images") as progress:
            while len(chosen) < k:
                told = ray.put(last)
                last = best_of(ray.get([h.take.remote(told) for h in holders]))
                chosen.append((last.number, last.gain))
                progress.update(len(chosen))
        rows = np.array([number for number, _ in chosen], np.int64)
        found = [h.rows.remote(rows) for h in holders]
        gain = np.array([gain for _, gain in chosen])
        ray.get(_write.remote(gain, manifest.uri, *found))
    finally:
        for holder in holders:
            ray.kill(holder)


@ray.remote(num_cpus=0, scheduling_strategy="SPREAD")
class Holder:
    """A block of consecutive rows of the pool; first: the number of its first row."""

    def __init__(
        self, method: Greedy[Any], seed: int, files: PoolFiles, parts: tuple[str, ...], first: int
    ):
        self.files, self.parts, self.first = files, parts, first
        pools = [files.read(part, method.needs) for part in parts]
        self.sizes = [len(pool) for pool in pools]
        self.block = Block(method, joined(pools), first, seed)

    def take(self, chosen: Offer | None) -> Offer | None:
        return self.block.take(chosen)

    def rows(self, number: np.ndarray) -> tuple[np.ndarray, pa.Table]:
        """The identity of those of these rows, by number, that lie here, and their places in the
        list."""
        table, first = PartedTable(locate(self.files.table)), self.first
        places, found = [], []
        for part, size in zip(self.parts, self.sizes, strict=True):
            here = np.flatnonzero((number >= first) & (number < first + size))
            if len(here):
                rows = read_table(table.part(part), _KEPT).select(_KEPT)
                found.append(rows.take(pa.array(number[here] - first)))
                places.append(here)
            first += size
        empty = pa.schema([MANIFEST.field(name) for name in _KEPT]).empty_table()
        return np.concatenate([np.empty(0, np.int64), *places]), pa.concat_tables([empty, *found])


@ray.remote(num_cpus=1)
def _write(gain: np.ndarray, manifest: str, *found: tuple[np.ndarray, pa.Table]) -> None:
    order = np.argsort(np.concatenate([places for places, _ in found]))
    table = pa.concat_tables([rows for _, rows in found]).take(pa.array(order))
    table = table.append_column("rank", pa.array(np.arange(len(gain))))
    table = table.append_column("score", pa.array(gain))
    table = table.append_column("weight", pa.array(np.ones(len(gain))))
    reason = pa.array(["highest gain"] * len(gain), pa.string())
    write_table(locate(manifest), table.append_column("reason", reason).cast(MANIFEST))
