"""The nearest neighbours of every row of a pool: its rows sharded over actors, answers merged."""

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.clustering.neighbors import Kind, Neighbors, best, recall, single_thread
from coreset_ray.core.cosine import unit_rows
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.watch import needing
from coreset_ray.io.embedding_parts import read_part
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import PartedTable, uid_words, write_table

_BLOCK = 1 << 20  # rows of an index, about: what it finds depends on them, not on who holds them
_WAITING = 2  # parts of queries under way for each thread that searches
_ALL = 1 << 62
_SAMPLE = 512  # rows whose neighbours are also found by looking at every row

Part = tuple[str, int]  # its name, and the number of its first row in the pool


@dataclass(frozen=True)
class Search:
    """k: neighbours of a row; width: m; kind, lists, probes: of each index."""

    k: int
    width: int
    kind: Kind
    lists: int
    probes: int


@dataclass(frozen=True)
class Queries:
    """Rows of a pool: numbers (q,), uid (q,) text, and embeddings (q, m) of length 1."""

    row: np.ndarray
    uid: pa.ChunkedArray
    unit: np.ndarray


@dataclass(frozen=True)
class Answer:
    """Candidates for q queries: row numbers (q, c), similarities, and uids (q, c, 2)."""

    row: np.ndarray
    similarity: np.ndarray
    uid: np.ndarray

    def best(self, own: np.ndarray, k: int) -> "Answer":
        """The k most similar, best first; own: the queries' row numbers, (q,)."""
        place = best(self.similarity, self.row, self.uid, own, k)
        lines = np.arange(len(place))[:, None]
        return Answer(self.row[lines, place], self.similarity[lines, place], self.uid[lines, place])


def find_neighbors(
    table: PartedTable,
    parts: dict[str, int],
    search: Search,
    out: Location,
    *,
    actors: int,
    threads: int = 1,
    gpus: float = 0.0,
) -> dict[str, Any]:
    """Writes a part of neighbours for every embedding part that has none yet.

    parts: rows of each, in the order that numbers rows; actors: processes that hold the pool's
    rows between them, or each a copy of some where the pool is small; threads: parts that each
    searches for at once; gpus: of each. Returns `recall` against looking at every row, on a
    sample. Nothing of the pool's size passes through the driver.
    """
    firsts = np.cumsum([0, *parts.values()])[:-1].tolist()
    placed = list(zip(parts, firsts, strict=True))
    started = Searcher.options(num_gpus=gpus, max_concurrency=threads)  # type: ignore[attr-defined]
    teams: list[list[Any]] = [
        [started.remote(table.folder.uri, blocks, search, gpus > 0) for blocks in team]
        for team in _teams(_blocks(placed), actors)
    ]
    count = sum(map(len, teams))
    try:
        left = deque(p for p in placed if not (out / f"part-{p[0]}.parquet").exists())
        held = needing("the search for neighbours", gpus=gpus, count=count)
        with held, Progress("knn", len(parts), "parts") as progress:
            progress.update(done := len(parts) - len(left))
            pending: dict[ray.ObjectRef, int] = {}  # and which team is at it
            while left or pending:
                while left and len(pending) < len(teams) * threads * _WAITING:
                    busy = Counter(pending.values())
                    team = min(range(len(teams)), key=busy.__getitem__)
                    name, first = left.popleft()
                    queries = _read.remote(table.folder.uri, (name, first), search.width, _ALL)
                    answers = [s.search.remote(queries) for s in teams[team]]
                    place = (out / f"part-{name}.parquet").uri
                    pending[_write.remote(place, search.k, queries, *answers)] = team
                ready, _ = ray.wait([*pending])
                ray.get(ready)
                for ref in ready:
                    del pending[ref]
                progress.update(done := done + len(ready))
        exact = search.kind == "flat"
        return {"recall": 1.0 if exact else _recall(table, placed, search, teams[0])}
    finally:
        for searcher in (searcher for team in teams for searcher in team):
            ray.kill(searcher)


def _blocks(parts: list[Part]) -> list[list[Part]]:
    """Consecutive parts that share an index."""
    groups: dict[int, list[Part]] = {}
    for part in parts:
        groups.setdefault(part[1] // _BLOCK, []).append(part)
    return list(groups.values())


def _teams(blocks: list[list[Part]], actors: int) -> list[list[list[list[Part]]]]:
    """What each member of each team holds: a team holds every block once."""
    team = [blocks[i::actors] for i in range(min(actors, len(blocks)))]
    return [team] * max(1, actors // len(blocks))


def _recall(table: PartedTable, parts: list[Part], search: Search, searchers: list[Any]) -> float:
    """Of the neighbours of some rows of some parts, all over the pool."""
    chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, 8).astype(int))]
    shares = []
    for part in chosen:
        queries = _read.remote(table.folder.uri, part, search.width, _SAMPLE // len(chosen))
        answers = [
            _merge.remote(search.k, queries, *[s.search.remote(queries, every) for s in searchers])
            for every in (False, True)
        ]
        found, truth = ray.get(answers)
        shares.append(recall(found.row, truth.row))
    return float(np.mean(shares))


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
class Searcher:
    """Some blocks of the pool's rows; a call searches them by one thread. All it holds is read
    from the table, so it may be lost at any time."""

    def __init__(self, table: str, blocks: list[list[Part]], wanted: Search, gpu: bool):
        self.table, self.blocks, self.wanted, self.gpu = table, blocks, wanted, gpu
        self.held: list[tuple[Neighbors, np.ndarray, np.ndarray]] = []
        self.reading = threading.Lock()

    def search(self, queries: Queries, every: bool = False) -> Answer:
        """The best of these blocks; every: by looking at every row."""
        single_thread()  # this thread: calls run in threads of their own
        with self.reading:
            if not self.held:
                self.held = [self._index(block) for block in self.blocks]
        answers = []
        for index, number, uid in self.held:
            look = index.search_all if every else index.search
            place, similarity = look(queries.unit, self.wanted.k)
            row = np.where(place < 0, -1, number[place])
            answers.append(Answer(row, similarity, uid[place]))
        return _together(answers).best(queries.row, self.wanted.k)

    def _index(self, block: list[Part]) -> tuple[Neighbors, np.ndarray, np.ndarray]:
        """A block's index, the numbers of its rows and their uids."""
        rows = [_queries(self.table, part, self.wanted.width) for part in block]
        number = np.concatenate([r.row for r in rows])
        uid = np.concatenate([uid_words(r.uid) for r in rows])
        unit, wanted = np.concatenate([r.unit for r in rows]), self.wanted
        del rows  # an index may hold a copy of its own
        index = Neighbors(unit, wanted.kind, lists=wanted.lists, probes=wanted.probes, gpu=self.gpu)
        return index, number, uid


@ray.remote(num_cpus=0)
def _read(table: str, part: Part, width: int, most: int) -> Queries:
    """So many rows of a part at equal distances, all of them at most."""
    queries = _queries(table, part, width)
    if most >= len(queries.row):
        return queries
    some = np.linspace(0, len(queries.row) - 1, most).astype(int)
    return Queries(queries.row[some], queries.uid.take(pa.array(some)), queries.unit[some])


@ray.remote(num_cpus=0)
def _merge(k: int, queries: Queries, *answers: Answer) -> Answer:
    return _together(answers).best(queries.row, k)


@ray.remote(num_cpus=0)
def _write(place: str, k: int, queries: Queries, *answers: Answer) -> None:
    """A part: uid, neighbor and similarity, both of k, best first."""
    found = _together(answers).best(queries.row, k)
    similarity = pa.array(found.similarity.astype(np.float32).ravel())
    columns = {
        "uid": queries.uid,
        "neighbor": pa.FixedSizeListArray.from_arrays(pa.array(found.row.ravel()), k),
        "similarity": pa.FixedSizeListArray.from_arrays(similarity, k),
    }
    write_table(locate(place), pa.table(columns))


def _together(answers: Any) -> Answer:
    return Answer(
        *(
            np.concatenate([getattr(a, name) for a in answers], axis=1)
            for name in ("row", "similarity", "uid")
        )
    )


def _queries(table: str, part: Part, width: int) -> Queries:
    name, first = part
    uid, embedding = read_part(PartedTable(locate(table)), name, width)
    return Queries(first + np.arange(len(uid)), uid, unit_rows(embedding))
