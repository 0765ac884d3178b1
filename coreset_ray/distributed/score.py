"""Scores a pool on the cluster. Every sum is over integers, so the answer does not depend on
how many workers shared it, and nothing of the pool's size passes through the driver."""

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from coreset_ray.core.method import PerSample, Sampled, Scorer
from coreset_ray.core.pool import Pool, uid_order
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.session import cluster
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import PartedTable, matrix, read_table, uid_words, write_table

_CHUNKS_PER_WORKER = 16
_DRAWS_AT_LEAST = 500


def score_table(
    method: Scorer, seed: int, table: PartedTable, parts: list[str], out: Location, workers: int
) -> dict[str, Any]:
    """Writes a score part for every embedding part; returns the pool's lowest and highest score
    and the method's facts.

    parts: names of embedding parts with at least one row; out: the folder for part-*.parquet;
    workers: how many actors share the draws.
    """
    folder, target = table.folder.uri, out.uri
    if isinstance(method, PerSample):
        ranges = ray.get([_score_part.remote(method, seed, folder, p, target) for p in parts])
        return _span(ranges, {})
    assert isinstance(method, Sampled), f"no runner for {type(method).__name__}"
    prepared, order, facts = cast(Any, _prepare.remote(method, folder, parts))
    total = _sum_of_draws(method, seed, prepared, workers)
    ranges = ray.get(_write_scores.remote(method, total, order, folder, parts, target))
    return _span(ranges, ray.get(facts))


def _sum_of_draws(method: Sampled, seed: int, prepared: Any, workers: int) -> Any:
    """A reference to the sum of all draws.

    Draws go out in chunks to whichever actors are up: one that starts late, or never for want of
    room, holds nothing back, and a chunk whose actor is lost is drawn again.
    """
    ray.wait([prepared], fetch_local=False)  # before actors take the room that it needs
    room = 1 if workers <= cluster().cpus else 0
    actors = [_Drawer.options(num_cpus=room).remote() for _ in range(workers)]  # type: ignore[attr-defined]
    busy: dict[ray.ObjectRef, tuple[Any, int]] = {a.start.remote(): (a, 0) for a in actors}
    size = max(_DRAWS_AT_LEAST, -(-method.draws // (workers * _CHUNKS_PER_WORKER)))
    chunks = ((i, min(i + size, method.draws)) for i in range(0, method.draws, size))
    total, done = None, 0
    with Progress("score", method.draws, "draws") as progress:
        while done < method.draws:
            ready = ray.wait(list(busy), num_returns=1, fetch_local=False)[0][0]
            actor, drawn = busy.pop(ready)
            if drawn:
                total = ready if total is None else _add.remote(total, ready)
                done += drawn
                progress.update(done)
            else:
                ray.get(ready)  # an actor that could not start says why here
            if (chunk := next(chunks, None)) is not None:
                part = actor.tally.remote(method, seed, prepared, *chunk)
                busy[part] = actor, chunk[1] - chunk[0]
    ray.wait([total], fetch_local=False)  # before the actors go: a lost sum is drawn again
    return total


@ray.remote(max_restarts=-1, max_task_retries=-1)
class _Drawer:
    """Holds nothing between calls, so it may be lost at any time."""

    def start(self) -> None:
        """Answers once the actor is up."""

    def tally(self, method: Sampled, seed: int, prepared: Any, first: int, last: int) -> np.ndarray:
        return method.tally(prepared, seed, first, last)


@ray.remote(num_cpus=0)
def _add(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left + right


@ray.remote(num_cpus=1, num_returns=3)
def _prepare(
    method: Sampled, folder: str, parts: list[str]
) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """The prepared pool, the order of its rows among the parts', and the method's facts."""
    pool = _load(method, folder, parts)
    order = uid_order(pool.uid)
    prepared = method.prepare(pool.take(order))
    return prepared, order, method.facts(prepared)


@ray.remote(num_cpus=1)
def _score_part(
    method: PerSample, seed: int, folder: str, part: str, out: str
) -> tuple[float, float]:
    score = method.score(_load(method, folder, [part]), seed)
    return _write_part(folder, part, {"score": score}, out)


@ray.remote(num_cpus=1)
def _write_scores(
    method: Sampled, total: np.ndarray, order: np.ndarray, folder: str, parts: list[str], out: str
) -> list[tuple[float, float]]:
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    columns = {name: column[back] for name, column in method.columns(total).items()}
    ranges, start = [], 0
    for part in parts:
        with PartedTable(locate(folder)).part(part).open_file() as source:
            rows = pq.read_metadata(source).num_rows
        stop = start + rows
        ranges.append(
            _write_part(folder, part, {n: c[start:stop] for n, c in columns.items()}, out)
        )
        start = stop
    return ranges


def _load(method: Scorer, folder: str, parts: list[str]) -> Pool:
    """The rows of these parts, one after another, with the columns that the method may see."""
    table = PartedTable(locate(folder))
    tables = [read_table(table.part(p), ["uid", *method.needs]) for p in parts]
    rows = pa.concat_tables(tables)
    columns = {n: matrix(rows[n]) if n == "embedding" else rows[n] for n in method.needs}
    return Pool(uid_words(rows["uid"]), columns)


def _write_part(
    folder: str, part: str, columns: dict[str, np.ndarray], out: str
) -> tuple[float, float]:
    """Scores of one part beside the identity of its rows; returns its lowest and highest."""
    rows = read_table(PartedTable(locate(folder)).part(part), ["uid", "shard", "key"])
    for name, column in columns.items():
        rows = rows.append_column(name, pa.array(column, pa.float64()))
    write_table(locate(out) / f"part-{part}.parquet", rows)
    return float(columns["score"].min()), float(columns["score"].max())


def _span(ranges: list[tuple[float, float]], facts: dict[str, Any]) -> dict[str, Any]:
    lows, highs = zip(*ranges, strict=True)
    return {"lowest": min(lows), "highest": max(highs), "facts": facts}
