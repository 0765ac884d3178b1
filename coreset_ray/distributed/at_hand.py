"""Choices from a pool that one process can hold: a task reads it once and chooses for several
budgets. The manifests are those that the whole cluster would write."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.alone import Alone, in_one_go, select_budgets
from coreset_ray.core.filter import check_left
from coreset_ray.core.limits import COPIES
from coreset_ray.core.memory import Growth
from coreset_ray.core.pool import joined
from coreset_ray.core.rule import choose_rows
from coreset_ray.core.selection import Selection
from coreset_ray.core.threads import one_thread
from coreset_ray.core.whole_set import WholeSet
from coreset_ray.distributed.alone import REASON, row_bytes, row_widths
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.choose import Ranking, Scored, group_of
from coreset_ray.distributed.evaluations import as_they_finish
from coreset_ray.distributed.session import cluster
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, read_table, uid_words, write_manifest

AT_HAND = 1 << 30  # bytes that a process may hold of a pool
_SCORED = 256  # bytes of a scored row: its identity as text, score and group
_IDENTITY = ["uid", "shard", "key"]


@dataclass(frozen=True)
class _Held:
    """A pool in this process. identity: of all rows; select: budgets → what is kept of them."""

    identity: pa.Table
    select: Callable[[Sequence[int]], list[Selection]]
    reason: str


@dataclass(frozen=True)
class FromScores:
    """What a rule keeps of a scored pool. parts: of the scores, at least one; rows: of all;
    span: the lowest and the highest score."""

    ranking: Ranking
    parts: tuple[Scored, ...]
    rows: int
    span: tuple[float, float]

    together = False  # ranking again costs less than reading

    def bytes(self, images: int) -> int:
        return COPIES * _SCORED * self.rows

    def read(self) -> _Held:
        told, names = self.ranking, [*_IDENTITY, "score"]
        tables = [read_table(locate(part.scores), names) for part in self.parts]
        groups = [group_of(part, len(t)) for part, t in zip(self.parts, tables, strict=True)]
        rows, group = pa.concat_tables(tables), np.concatenate(groups)
        uid, score = uid_words(rows["uid"]), rows["score"].to_numpy()
        key = told.method.rank_key(score, uid, told.seed)

        def select(ks: Sequence[int]) -> list[Selection]:
            found = []
            for k in ks:
                if self.parts[0].filters:
                    check_left(k, int((group >= 0).sum()), len(group))
                kept = choose_rows(told.rule, key, uid, k, told.seed, group)
                weight = told.method.weight(score[kept], *self.span)
                found.append(Selection(kept, score[kept], weight))
            return found

        return _Held(rows, select, told.rule.reason)


@dataclass(frozen=True)
class ByItself:
    """What a method keeps that reads no scores. parts: of the pool, with the rows of each; group:
    the column whose groups are represented alike."""

    method: Alone
    seed: int
    files: PoolFiles
    parts: tuple[tuple[str, int], ...]
    group: str | None = None

    @property
    def together(self) -> bool:
        return in_one_go(self.method)

    def bytes(self, images: int) -> int:
        of = self.method.needs, self.files, self.parts[0][0]
        each, count = row_bytes(*of), sum(rows for _, rows in self.parts)
        if not isinstance(self.method, WholeSet):
            return COPIES * each * count
        width = row_widths(*of)
        row = self.method.copies * each + self.method.beside(width)
        return row * count + self.method.scratch(images, width)

    def read(self) -> _Held:
        table = PartedTable(locate(self.files.table))
        pool = joined([self.files.read(part, self.method.needs) for part, _ in self.parts])
        groups = [self.files.group_of(part, rows, self.group) for part, rows in self.parts]
        identity = [read_table(table.part(part), _IDENTITY) for part, _ in self.parts]
        group = np.concatenate(groups)

        def select(ks: Sequence[int]) -> list[Selection]:
            if self.files.filters:
                for k in ks:
                    check_left(k, int((group >= 0).sum()), len(group))
            return select_budgets(self.method, pool, ks, self.seed, group=group)

        return _Held(pa.concat_tables(identity), select, REASON)


@dataclass(frozen=True)
class Job:
    """Budgets to choose for. wanted: how many images, and the URI of the manifest."""

    source: FromScores | ByItself
    wanted: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one budget. seconds: reading, choosing and writing; memory: bytes by which
    the process grew at most meanwhile, None where the system does not tell; failed: why there is no
    manifest. Budgets chosen in one go have the run in common, and each names all it took."""

    seconds: float
    memory: int | None
    failed: str | None = None


def at_hand(source: FromScores | ByItself, images: int) -> bool:
    """Whether a process for every CPU may hold this pool, and choose so many of it."""
    room = [memory / max(1.0, cpus) for cpus, memory in cluster().nodes]
    return source.bytes(images) <= min([AT_HAND, *room])


def choose_at_hand(jobs: Sequence[Job]) -> Iterator[tuple[int, list[Outcome]]]:
    """Place of each job and the outcomes of its budgets, as they finish; so many at a time as there
    are CPUs."""
    tasks = [partial(_choose.remote, job) for job in jobs]
    yield from as_they_finish(tasks, max(1, int(cluster().cpus)))


@ray.remote(num_cpus=1, max_retries=3)
def _choose(job: Job) -> list[Outcome]:
    one_thread()
    pa.default_memory_pool().release_unused()
    growth, start = Growth(), time.monotonic()
    held, ks = job.source.read(), [k for k, _ in job.wanted]
    read, most = time.monotonic() - start, growth.bytes
    found = []
    for some in [ks] if job.source.together else [[k] for k in ks]:
        growth.reset()
        start = time.monotonic()
        tried = _tried(held.select, some)
        spent, grown = read + time.monotonic() - start, growth.bytes
        memory = None if grown is None or most is None else max(grown, most)
        for chosen in tried:
            start = time.monotonic()
            failed = str(chosen) if isinstance(chosen, ValueError) else None
            if isinstance(chosen, Selection):
                place = locate(job.wanted[len(found)][1])
                rows = held.identity.take(pa.array(chosen.rows))
                write_manifest(place, rows, chosen.gains, chosen.weights, held.reason)
            found.append(Outcome(spent + time.monotonic() - start, memory, failed))
    return found


def _tried(
    select: Callable[[Sequence[int]], list[Selection]], ks: Sequence[int]
) -> Sequence[Selection | ValueError]:
    """What each budget comes to; where they fail together, each by itself."""
    try:
        return select(ks)
    except ValueError as error:
        if len(ks) == 1:
            return [error]
    return [one for k in ks for one in _tried(select, [k])]
