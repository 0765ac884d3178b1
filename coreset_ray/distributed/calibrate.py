"""A few seconds of the real work on the cluster in hand: actors that come up, columns laid out,
draws by all workers at once, sums turned into scores. Writes to temporary folders alone."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from coreset_ray.core.columns import columns_of
from coreset_ray.core.forecast import DrawCost, Drawing, RowCosts, fit
from coreset_ray.core.method import PerSample, Sampled, Scorer
from coreset_ray.core.pool import Pool as Rows
from coreset_ray.core.ranks import count_digits, ordered_bits
from coreset_ray.core.run import empty_total
from coreset_ray.distributed import finish, score
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.calibrate_pool import resident_bytes
from coreset_ray.distributed.replicas import Pool, Replica, agreed, new_replica
from coreset_ray.distributed.score import Layout
from coreset_ray.distributed.trial import Laid, lay_out
from coreset_ray.io.filesystem import locate
from coreset_ray.io.ledger import Chunk, Ledger, Record, SumFile
from coreset_ray.io.row_files import row_shards
from coreset_ray.io.tables import read_table, uid_words

_ROWS, _BYTES = 200_000, 256 << 20  # of a trial's columns, at most
_FEW = 64  # rows of a pool that shows what a process holds before any
_PATIENCE = 120.0  # seconds for workers to come up
_SECONDS = 1.0  # of draws

Source = tuple[str, dict[str, int]]  # an embedding table's folder, and the rows of its parts


class Calibration:
    """Trials of a pool of n rows and m dimensions, of its own rows where a source is given."""

    def __init__(self, method: Scorer, seed: int, n: int, m: int, source: Source | None):
        self.method, self.seed, self.n, self.source = method, seed, n, source
        if 5 * n * m <= _BYTES and n <= _ROWS:
            self.sizes = [(n, m)]
        else:
            rows = min(n, _ROWS)
            dims = max(2, min(m, _BYTES // (5 * rows)))
            self.sizes = [(max(1, rows // 4), dims), (rows, dims)]

    def rows(self) -> RowCosts:
        """What rows and bytes cost a process, by the largest trial on one node."""
        node = _nodes()[0]
        rows, dims = self.sizes[-1]
        with self._laid(rows, dims, 1, "float32", [node]) as (folder, laid):
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            meter: Any = _Meter.options(scheduling_strategy=there).remote(self.method, self.seed)  # type: ignore[attr-defined]
            base: Any = ray.get(meter.base.remote())
            ray.kill(meter)
            if isinstance(self.method, Sampled):
                start, seconds, save = _finishing(self.method, folder, laid, there)
            else:
                start, seconds, save = _scoring(self.method, self.seed, folder, laid, there)
            rank = _rank.options(scheduling_strategy=there).remote(
                *(self.method, self.seed, f"{folder}/scores", list(laid.parts))
            )
            ranking = ray.get(rank)
        rate = laid.columns / laid.seconds
        return RowCosts(rate, save, seconds / rows, ranking / rows, start, int(base))

    def draws(self, layout: Layout) -> Drawing:
        """What a draw costs with all workers at work: on the pool's own columns where they are
        laid out on every machine, else on trials of one or two sizes."""
        assert isinstance(self.method, Sampled)
        if self.source is not None:
            shards = layout.shards(self.source[1])
            pool = Pool(self.source[0], shards, layout.cpus, layout.gpus)
            done = _draw(pool, self.method, self.seed, layout.workers)
            if done is not None:
                seconds, start, workers = done
                cost = DrawCost(0.0, seconds / self.n, (self.n,), self.sizes[-1][1], True)
                return Drawing(cost, start, workers)
        return self._draws_of_trials(layout)

    def _draws_of_trials(self, layout: Layout) -> Drawing:
        assert isinstance(self.method, Sampled)
        trials, start, workers = [], 0.0, 0
        for rows, dims in self.sizes:
            everywhere = self._laid(rows, dims, layout.row_shards, layout.columns, _nodes())
            with everywhere as (folder, laid):
                shards = replace(layout, scratch=folder).shards(laid.parts)
                pool = Pool(f"{folder}/table", shards, layout.cpus, layout.gpus)
                done = _draw(pool, self.method, self.seed, layout.workers)
                assert done is not None, "a trial is laid out on every machine"
                seconds, start, workers = done
                trials.append((rows, seconds))
        sizes = tuple(rows for rows, _ in trials)
        return Drawing(DrawCost(*fit(trials), sizes, self.sizes[-1][1], False), start, workers)

    @contextmanager
    def _laid(
        self, rows: int, dims: int, shards: int, dtype: str, nodes: Sequence[str]
    ) -> Iterator[tuple[str, Laid]]:
        """A trial pool laid out in one temporary folder on each of these nodes."""
        folder = f"{tempfile.gettempdir()}/coreset-ray-plan-{uuid.uuid4().hex}"
        pins = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        try:
            laid = ray.get(
                [
                    _lay_out.options(scheduling_strategy=pin).remote(
                        *(folder, rows, dims, shards, dtype, self.source)
                    )
                    for pin in pins
                ]
            )
            yield folder, laid[0]
        finally:
            ray.get([_remove.options(scheduling_strategy=pin).remote(folder) for pin in pins])


def free_bytes(folder: str) -> int:
    """Least free space, over all nodes, where the folder lies or would be made."""
    pins = [NodeAffinitySchedulingStrategy(node, soft=False) for node in _nodes()]
    return min(ray.get([_free.options(scheduling_strategy=pin).remote(folder) for pin in pins]))


def free_here(folder: str) -> int:
    """Free bytes where the folder lies or would be made."""
    place = Path(folder)
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _nodes() -> list[str]:
    return [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]


def _draw(pool: Pool, method: Sampled, seed: int, workers: int) -> tuple[float, float, int] | None:
    """Seconds of a draw of one worker with all at work, seconds until all are ready, and how many
    came up; None where the pool is not laid out wherever they came up."""
    replicas: list[Replica] = []
    ledger = f"{tempfile.gettempdir()}/coreset-ray-plan-none"  # nothing is committed
    start = time.monotonic()
    try:
        replicas.append(new_replica(pool, method))
        if not _laid_out(replicas):
            return None
        known = ray.put(agreed(replicas[0].actors, pool.shards[0].pool))
        replicas += [new_replica(pool, method) for _ in range(workers - 1)]
        up = _answered(replicas, [[a.tell.remote("laid_out") for a in r.actors] for r in replicas])
        if not _laid_out(up):
            return None
        calls = [[r.lead.start.remote(known, method, seed, ledger)] for r in up]
        up = _answered(up, calls)
        ready = time.monotonic() - start
        speeds = _speeds(up)
        return 1 / float(np.mean(speeds)), ready, len(up)
    finally:
        for replica in replicas:
            replica.end()


def _laid_out(replicas: Sequence[Replica]) -> bool:
    return all(ray.get([a.tell.remote("laid_out") for r in replicas for a in r.actors]))


def _answered(replicas: Sequence[Replica], calls: Sequence[Sequence[Any]]) -> list[Replica]:
    """The replicas whose calls all end in time. Errors of the calls are raised."""
    every = [call for group in calls for call in group]
    ready = set(ray.wait(every, num_returns=len(every), timeout=_PATIENCE)[0])
    up = [r for r, group in zip(replicas, calls, strict=True) if ready.issuperset(group)]
    if not up:
        raise RuntimeError(
            f"no worker came up in {_PATIENCE:.0f} s: the cluster's CPUs are taken; wait until "
            "they are free, or set compute.score_workers lower"
        )
    ray.get([call for r, group in zip(replicas, calls, strict=True) if r in up for call in group])
    return up


def _speeds(replicas: Sequence[Replica]) -> list[float]:
    """Draws a second of each replica, all drawing at once for a second."""
    at = 0

    def draw(count: int) -> list[float]:
        nonlocal at
        spans = [(at + i * count, at + (i + 1) * count) for i in range(len(replicas))]
        at = spans[-1][1]
        calls = [r.lead.tally.remote(*span) for r, span in zip(replicas, spans, strict=True)]
        return [max(seconds, 1e-6) for _, seconds in ray.get(calls)]

    draw(16)  # compiles
    count = 64
    while (slowest := max(draw(count))) < _SECONDS / 8:
        count *= 4
    count = max(1, int(count * _SECONDS / slowest))
    return [count / seconds for seconds in draw(count)]


def _finishing(method: Sampled, folder: str, laid: Laid, there: Any) -> tuple[float, float, float]:
    """Seconds for an actor to come up with a sum, and to judge it and write its score parts; and
    bytes of sums written a second."""
    ledger = Ledger(locate(f"{folder}/sums"))
    file = SumFile("sum.npy", tuple(laid.parts), tuple(laid.parts.values()))
    record = Record("trial", (Chunk(0, 1, 0),), (file,))
    size = ray.get(_some_sum.options(scheduling_strategy=there).remote(method, folder, file))
    shard = row_shards(laid.parts, 1, folder)[0]
    begin = time.monotonic()
    actor: Any = finish.Summary.options(scheduling_strategy=there).remote(  # type: ignore[attr-defined]
        method, ledger.folder.uri, [record], shard
    )
    try:
        ray.get(actor.untouched.remote())
        start = time.monotonic()
        finish.judge([actor], 1, shard.pool)
        finish.write_scores([actor], f"{folder}/table", f"{folder}/scores")
        finished = time.monotonic()
        ray.get(actor.save.remote("again.npy"))
        return start - begin, finished - start, size / (time.monotonic() - finished)
    finally:
        ray.kill(actor)


class _Reading(PerSample):
    """What a method that scores by signals takes, about: their columns are no wider."""

    needs = ("embedding",)

    def score(self, block: Rows, seed: int) -> np.ndarray:
        return np.zeros(len(block))


def _scoring(
    method: Scorer, seed: int, folder: str, laid: Laid, there: Any
) -> tuple[float, float, float]:
    """Seconds for a process to come up, and to score and write the trial's parts one after
    another; and 0, as no sums are written."""
    assert isinstance(method, PerSample), f"no runner for {type(method).__name__}"
    if any("." in name for name in method.needs):
        method = _Reading()  # a trial has no signals
    task = score._score_part.options(scheduling_strategy=there)
    files = PoolFiles(f"{folder}/table")
    times = [time.monotonic()]
    for part in [next(iter(laid.parts)), *laid.parts]:
        ray.get(task.remote(method, seed, files, part, f"{folder}/scores"))
        times.append(time.monotonic())
    return times[1] - times[0], times[-1] - times[1], 0.0


@ray.remote(num_cpus=0)
def _lay_out(
    folder: str, rows: int, dims: int, shards: int, dtype: str, source: Source | None
) -> Laid:
    return lay_out(folder, rows, dims, shards, dtype, source)


@ray.remote(num_cpus=0)
def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@ray.remote(num_cpus=0)
def _free(folder: str) -> int:
    return free_here(folder)


@ray.remote(num_cpus=0)
def _some_sum(method: Sampled, folder: str, file: SumFile) -> int:
    """Writes a sum with random numbers in it; its bytes."""
    shape = 2, method.channels, sum(file.rows)
    total = np.random.default_rng(0).integers(0, 1 << 36, shape)
    Ledger(locate(f"{folder}/sums")).write_sum(file.name, total)
    return total.nbytes


@ray.remote(num_cpus=0)
def _rank(method: Scorer, seed: int, scores: str, parts: list[str]) -> float:
    """Seconds to read the places of these score parts and to count the digits of their keys."""
    start = time.monotonic()
    for part in parts:
        rows = read_table(locate(scores) / f"part-{part}.parquet", ["uid", "score"])
        key = method.rank_key(rows["score"].to_numpy(), uid_words(rows["uid"]), seed)
        for shift in (64, 48, 32, 16):
            count_digits(ordered_bits(key), np.zeros(1, np.uint64), shift)
    return time.monotonic() - start


@ray.remote(num_cpus=0)
class _Meter:
    """A process with the code of one that draws, compiled, and no pool to speak of."""

    def __init__(self, method: Scorer, seed: int):
        if isinstance(method, Sampled):
            some = np.random.default_rng(0).normal(size=(_FEW, _FEW)).astype(np.float32)
            uid = np.stack([np.arange(_FEW, dtype=np.uint64)] * 2, axis=1)
            columns = columns_of(Rows(uid, {"embedding": some}))
            method.tally(columns, seed, 0, 2, empty_total(method, columns))

    def base(self) -> int:
        return resident_bytes()
