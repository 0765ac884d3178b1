"""From committed sums to score parts, and to what they say of their own noise."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core import stability
from coreset_ray.core.checksum import checksum
from coreset_ray.core.method import Sampled
from coreset_ray.core.ranks import RankSearch, count_digits, ordered_bits
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.ledger import Ledger, Record, SumFile, new_name
from coreset_ray.io.row_files import RowShard
from coreset_ray.io.tables import PartedTable, read_table, uid_words, write_table


def gather(
    method: Sampled, ledger: Ledger, records: Sequence[Record], shards: Sequence[RowShard]
) -> list[Any]:
    """Actors that hold the sum of these records, one for each shard of rows."""
    ledger_uri = ledger.folder.uri
    return [Summary.remote(method, ledger_uri, list(records), shard) for shard in shards]  # type: ignore[attr-defined]


def judge(actors: Sequence[Any], draws: int, rows: int) -> dict[str, Any]:
    """The stability report. The driver holds a few numbers for each part of the pool."""
    sums: dict[str, list[tuple[float, ...]]] = {}
    for told in ray.get([a.moments.remote() for a in actors]):
        for name, parts in told.items():
            sums.setdefault(name, []).extend(parts)
    halves = {  # fsum is exact, so shards of other sizes give the same bits
        name: stability.correlation(
            [math.fsum(column) for column in zip(*parts, strict=True)], rows
        )
        for name, parts in sums.items()
    }
    wanted = [max(1, round(f * rows)) for f in stability.FRACTIONS]
    search = RankSearch(np.array([[rows - k for k in wanted]] * 2), np.uint64)
    while not search.done:
        question = search.question()
        search.answer(np.sum(ray.get([a.digits.remote(*question) for a in actors]), axis=0))
    both = np.sum(ray.get([a.above.remote(search.found) for a in actors]), axis=0)
    overlaps = {
        f: float(shared / max(left, right))
        for f, (left, right, shared) in zip(stability.FRACTIONS, both, strict=True)
    }
    untouched = sum(ray.get([a.untouched.remote() for a in actors])) / rows
    return stability.report(halves, overlaps, untouched, draws, rows)


def write_scores(actors: Sequence[Any], table: str, out: str) -> tuple[float, float]:
    """Score parts beside the identity of their rows; the pool's lowest and highest score."""
    ends = [e for ends in ray.get([a.write.remote(table, out) for a in actors]) for e in ends]
    return min(low for low, _ in ends), max(high for _, high in ends)


def compact(actors: Sequence[Any], ledger: Ledger, records: Sequence[Record]) -> Record:
    """One record in place of several, with the same draws."""
    if len(records) == 1 and len(records[0].files) == len(actors):
        ledger.clean()
        return records[0]
    name = new_name()
    files = ray.get([a.save.remote(f"{name}-{i}.npy") for i, a in enumerate(actors)])
    chunks = sorted((c for r in records for c in r.chunks), key=lambda c: c.first)
    record = Record(name, tuple(chunks), tuple(files))
    ledger.commit(record)
    ledger.forget(records)
    ledger.clean()
    return record


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Summary:
    """The sum of all draws over the rows of one shard. All it holds is read from the ledger, so
    it may be lost at any time."""

    def __init__(self, method: Sampled, ledger: str, records: list[Record], shard: RowShard):
        self.method, self.ledger, self.shard = method, Ledger(locate(ledger)), shard
        self.total: dict[str, np.ndarray] = {}
        for record in records:
            for file in record.files:
                for part, total in self.ledger.read_sum(file, shard.parts).items():
                    self.total[part] = self.total[part] + total if part in self.total else total

    def moments(self) -> dict[str, list[tuple[float, ...]]]:
        """For each column and part Σa, Σb, Σa², Σb², Σab of the halves."""
        told: dict[str, list[tuple[float, ...]]] = {}
        for part in self.shard.parts:
            left, right = (self.method.columns(half) for half in self.total[part])
            for name, a in left.items():
                b = right[name]
                sums = a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()
                told.setdefault(name, []).append(tuple(float(s) for s in sums))
        return told

    def digits(self, found: np.ndarray, shift: int) -> np.ndarray:
        """(2, r, 2^16) counts for a rank search in the scores of each half."""
        return np.stack([count_digits(self._bits(half), found[half], shift) for half in (0, 1)])

    def above(self, cuts: np.ndarray) -> np.ndarray:
        """For each cut how many rows reach it in one half, the other, and both: (r, 3)."""
        left, right = (self._bits(half)[None] >= cuts[half][:, None] for half in (0, 1))
        return np.stack([left.sum(1), right.sum(1), (left & right).sum(1)], axis=1)

    def untouched(self) -> int:
        return sum(int((~t.any(axis=(0, 1))).sum()) for t in self.total.values())

    def checksum(self, table: str) -> int:
        """Of the sum over this shard's rows."""
        parted = PartedTable(locate(table))
        uids = {p: uid_words(read_table(parted.part(p), ["uid"])["uid"]) for p in self.shard.parts}
        return sum(int(checksum(uids[p], self.total[p])) for p in self.shard.parts) % 2**64

    def differing(self, scores: str) -> str | None:
        """The first part whose score file does not hold the columns of its sum."""
        for part in self.shard.parts:
            columns = self.method.columns(self.total[part].sum(axis=0))
            rows = read_table(locate(scores) / f"part-{part}.parquet", list(columns))
            if any(not np.array_equal(rows[n].to_numpy(), c) for n, c in columns.items()):
                return part
        return None

    def save(self, name: str) -> SumFile:
        parts = self.shard.parts
        self.ledger.write_sum(name, np.concatenate([self.total[p] for p in parts], axis=-1))
        return SumFile(name, parts, self.shard.rows)

    def write(self, table: str, out: str) -> list[tuple[float, float]]:
        return [
            write_part(table, part, self.method.columns(self.total[part].sum(axis=0)), locate(out))
            for part in self.shard.parts
        ]

    def _bits(self, half: int) -> np.ndarray:
        scores = [self.method.columns(self.total[p][half])["score"] for p in self.shard.parts]
        return ordered_bits(np.concatenate(scores))


def write_part(
    table: str, part: str, columns: dict[str, np.ndarray], out: Location
) -> tuple[float, float]:
    """Scores of one part beside the identity of its rows; returns its lowest and highest."""
    rows = read_table(PartedTable(locate(table)).part(part), ["uid", "shard", "key"])
    for name, column in columns.items():
        rows = rows.append_column(name, pa.array(column, pa.float64()))
    write_table(out / f"part-{part}.parquet", rows)
    return float(columns["score"].min()), float(columns["score"].max())
