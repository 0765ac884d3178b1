"""Scores a pool on the cluster. Every sum is over integers, so the answer does not depend on
how many workers shared it, and nothing of the pool's size passes through the driver."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from coreset_ray.core.costs import value_bytes
from coreset_ray.core.method import PerSample, Sampled
from coreset_ray.core.rounding import rounding_effect
from coreset_ray.distributed import finish, metrics
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.draw import Drawing
from coreset_ray.distributed.replicas import Pool
from coreset_ray.distributed.trial import first_rows
from coreset_ray.distributed.watch import needing
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.ledger import Ledger
from coreset_ray.io.row_files import RowShard, row_shards
from coreset_ray.io.tables import PartedTable

_ROUNDED = 20_000  # rows that show what rounding does, at most
_FIRST_CHECK = 1 << 16  # draws after which a run may first be found stable


@dataclass(frozen=True)
class Layout:
    """How the pool is spread over processes. workers: replicas; row_shards: of each replica;
    cpus, gpus: of each process; scratch: folder of each machine for the pool's columns; columns:
    their dtype, float32 or float16."""

    workers: int
    row_shards: int
    cpus: float
    scratch: str
    gpus: float = 0.0
    columns: str = "float32"

    @property
    def width(self) -> int:
        """Bytes of a value of the columns."""
        return value_bytes(self.columns)

    def shards(self, parts: dict[str, int]) -> list[RowShard]:
        """The row shards of these parts, with the rows of each."""
        return row_shards(parts, self.row_shards, self.scratch, self.columns)


def score_rows(
    method: PerSample, seed: int, files: PoolFiles, parts: Sequence[str], out: Location
) -> dict[str, Any]:
    """Writes a score part for every embedding part, each on its own."""
    ends = ray.get([_score_part.remote(method, seed, files, p, out.uri) for p in parts])
    lows, highs = zip(*ends, strict=True)
    return {"lowest": min(lows), "highest": max(highs), "facts": {}}


def score_draws(
    method: Sampled,
    seed: int,
    table: PartedTable,
    parts: dict[str, int],
    out: Location,
    ledger: Ledger,
    layout: Layout,
    stability: float | None = None,
) -> dict[str, Any]:
    """Writes a score part for every embedding part.

    parts: rows of each part, at least one; stability: stop drawing, before all `method.draws`
    are made, once two runs would correlate as much. Returns the pool's lowest and highest score,
    the method's facts, the stability report, and the chunks of draws with their checksums.
    """
    shards = layout.shards(parts)
    pool = Pool(table.folder.uri, shards, layout.cpus, layout.gpus)
    drawing = Drawing(pool, method, seed, ledger, layout.workers)
    told = {"cpus": layout.cpus, "gpus": layout.gpus, "count": len(shards)}
    try:
        for draws in _checks(method.draws, stability):
            with needing("a copy of the pool", **told):
                records = drawing.until(draws)
            with metrics.timed("finish"):
                actors = finish.gather(method, ledger, records, shards)
                report = finish.judge(actors, draws, shards[0].pool)
            if stability is not None and report["repeat"]["score"] >= stability:
                break
    finally:
        drawing.end()
    with metrics.timed("finish"):
        lowest, highest = finish.write_scores(actors, table.folder.uri, out.uri)
        record = finish.compact(actors, ledger, records)
    return {
        "lowest": lowest,
        "highest": highest,
        "facts": drawing.facts,
        "draws": draws,
        "stability": report,
        "chunks": [[c.first, c.last, f"{c.checksum:016x}"] for c in record.chunks],
    }


def rounding(
    method: Sampled, seed: int, table: PartedTable, parts: dict[str, int], dtype: str
) -> dict[str, Any]:
    """`rounding_effect` on the first rows of the pool."""
    return ray.get(_rounding.remote(method, seed, table.folder.uri, parts, dtype))


@ray.remote(num_cpus=1)
def _rounding(
    method: Sampled, seed: int, folder: str, parts: dict[str, int], dtype: str
) -> dict[str, Any]:
    return rounding_effect(method, seed, first_rows(folder, parts, _ROUNDED), dtype)


def _checks(draws: int, stability: float | None) -> list[int]:
    """Numbers of draws after which stability is judged: they double, up to all."""
    checks, at = [], _FIRST_CHECK
    while stability is not None and at < draws:
        checks.append(at)
        at *= 2
    return [*checks, draws]


@ray.remote(num_cpus=1)
def _score_part(
    method: PerSample, seed: int, files: PoolFiles, part: str, out: str
) -> tuple[float, float]:
    score = method.score(files.read(part, method.needs), seed)
    return finish.write_part(files.table, part, {"score": score}, locate(out))
