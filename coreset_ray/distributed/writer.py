"""Gathers the rows of shards under way and commits each shard once it is whole."""

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from coreset_ray.distributed.losses import LOST
from coreset_ray.io.filesystem import locate
from coreset_ray.io.shards import REPEATED, Shard
from coreset_ray.io.tables import QUARANTINE, Commit, PartedTable, content_hash, part_name

_Fault = tuple[str, str]  # key, reason


@dataclass
class _Shard:
    """What has come in so far. Messages may come twice, when Ray repeats a lost task."""

    blocks: dict[int, pa.Table] = field(default_factory=dict)  # by the number of its first row
    faults: dict[int, list[_Fault]] = field(default_factory=dict)
    precision: str = ""
    end: tuple[Shard, int, list[_Fault], str] | None = None

    def whole(self) -> bool:
        seen = sum(b.num_rows for b in self.blocks.values())
        return self.end is not None and seen + sum(map(len, self.faults.values())) == self.end[1]


@ray.remote(num_cpus=0, max_restarts=-1)
class PartWriter:
    """Owns some of the shards of one run. Lost and started anew it knows nothing of the shards
    under way, which no pass after that finds committed, and does all that follow."""

    def __init__(self, table: str):
        self._table = PartedTable(locate(table))
        self._shards: dict[str, _Shard] = {}
        self._state: dict[str, Any] = {
            **{"shards": 0, "rows": 0, "quarantined": 0, "unreadable": {}, "error": None},
            **{"writer": uuid.uuid4().hex, "spent": {}, "encoder_memory": 0},
        }
        self._committed: set[str] = set()

    def add(
        self,
        shard: str,
        start: int,
        rows: pa.Table,
        faults: list[_Fault],
        precision: str,
        spent: Mapping[str, float],
        memory: int,
    ) -> None:
        """Rows of a shard that begin at its `start`-th decoded image. spent: by the encoder since
        it last said; memory: bytes that it held at most."""
        self._spend(spent)
        self._state["encoder_memory"] = max(self._state["encoder_memory"], memory)
        if shard not in self._committed:
            under_way = self._shards.setdefault(shard, _Shard())
            under_way.blocks[start], under_way.faults[start] = rows, faults
            under_way.precision = precision
            self._commit_if_whole(shard)

    def finish(
        self,
        shard: Shard,
        decoded: int,
        faults: list[_Fault],
        fault: str,
        spent: Mapping[str, float],
    ) -> None:
        """The shard's end was reached: images decoded, samples refused, why it ended early, what
        the reader spent."""
        self._spend(spent)
        if shard.name not in self._committed:
            self._shards.setdefault(shard.name, _Shard()).end = (shard, decoded, faults, fault)
            self._commit_if_whole(shard.name)

    def unreadable(self, shard: str, reason: str) -> None:
        if shard not in self._committed:
            self._shards.pop(shard, None)
            self._state["unreadable"][shard] = reason

    def state(self) -> dict[str, Any]:
        """Counts of what is committed, shards that could not be read, the error of a write, what
        all work took (as in `metrics.add`) and the memory of the largest encoder."""
        return self._state

    def _commit_if_whole(self, name: str) -> None:
        gathered = self._shards[name]
        if not gathered.whole():
            return
        assert gathered.end is not None, "a whole shard has its end"
        shard, _, refused, fault = gathered.end
        faults = refused + [f for start in sorted(gathered.faults) for f in gathered.faults[start]]
        if fault:
            faults.append(("", fault))
        blocks = [gathered.blocks[start] for start in sorted(gathered.blocks)]
        rows = pa.concat_tables(blocks) if blocks else None
        record = Commit(
            shard=name,
            part=part_name(shard),
            rows=rows.num_rows if rows else 0,
            quarantined=len(faults),
            repeated=sum(reason == REPEATED for _, reason in faults),
            fault=fault,
            content=content_hash(rows) if rows else "",
            precision=gathered.precision,
        )
        columns = [[name] * len(faults), [k for k, _ in faults], [r for _, r in faults]]
        quarantine = pa.Table.from_arrays([pa.array(c) for c in columns], schema=QUARANTINE)
        self._write(record, rows, quarantine)
        del self._shards[name]
        self._committed.add(name)
        self._state["unreadable"].pop(name, None)
        self._state["shards"] += 1
        self._state["rows"] += record.rows
        self._state["quarantined"] += record.quarantined

    def _write(self, record: Commit, rows: pa.Table | None, quarantine: pa.Table) -> None:
        start = time.perf_counter()
        try:
            self._table.commit(record, rows, quarantine)
        except Exception as error:  # the driver asks for it: raised here, no user would see it
            self._state["error"] = f"shard {record.shard!r} was not committed: {error}"
            raise
        finally:
            self._spend({"write": time.perf_counter() - start})

    def _spend(self, spent: Mapping[str, float]) -> None:
        total = self._state["spent"]
        for name, amount in spent.items():
            total[name] = total.get(name, 0) + amount


class Told:
    """What the writers of one pass said, in all their lives."""

    def __init__(self, writers: Sequence[Any]):
        self.writers = writers
        self.lives: dict[str, dict[str, Any]] = {}

    def ask(self) -> list[dict[str, Any]]:
        """The last state of each life. What a lost one had not committed is embedded again.
        Raises `RuntimeError` where a part could not be written."""
        for writer in self.writers:
            with suppress(*LOST):
                state: Any = ray.get(writer.state.remote())
                self.lives[state["writer"]] = state
        states = [*self.lives.values()]
        for state in states:
            if state["error"]:
                raise RuntimeError(state["error"])
        return states
