"""The clusters of a pool by k-means: its rows sharded over actors, their sums merged."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.clustering.kmeans_fit import Ask, Clustering, Found, find
from coreset_ray.clustering.kmeans_shard import Centers, Level, Shard
from coreset_ray.clustering.neighbors import single_thread
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.watch import needing
from coreset_ray.io.embedding_parts import read_part, width_of
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import PartedTable, matrix, read_table, uid_words, write_table

_UNDER_WAY = 2  # parts that wait at an actor


def find_clusters(
    table: PartedTable,
    parts: dict[str, int],
    wanted: Clustering,
    out: Location,
    *,
    actors: int,
    gpus: float = 0.0,
) -> dict[str, Any]:
    """Writes the centroids, unless they are there, and a part of clusters for every embedding part
    that has none yet: uid, cluster, and distance to the centroid.

    parts: rows of each; actors: processes that hold the pool's rows between them, each up to
    `kmeans_shard.HELD` bytes and the rest read anew at each pass; gpus: of each. All that is
    written is the same for any number of actors and any cut of the pool into parts. Returns what
    is known of the clusters. Raises `ValueError` where the pool cannot have as many.
    """
    wanted.check(rows := sum(parts.values()))
    with holding(table, parts, actors=actors, gpus=gpus) as (ask, held):
        level, found = find(
            ask, rows, wanted, lambda name, fit: _once(out / f"{name}.parquet", fit)
        )
        _write_parts(out, level, found[-1].centers, held)
    return _facts(found)


@contextmanager
def holding(
    table: PartedTable, parts: dict[str, int], *, actors: int, gpus: float = 0.0
) -> Iterator[tuple[Ask, list[tuple[Any, list[str]]]]]:
    """What asks the actors that hold the pool; and each with the names of its parts."""
    names = [name for name, count in parts.items() if count]
    width, uri = width_of(table, names[0]), table.folder.uri
    held = [names[i::actors] for i in range(min(actors, len(names)))]
    holders: list[Any] = [
        Holder.options(num_gpus=gpus).remote(uri, some, width, gpus > 0)  # type: ignore[attr-defined]
        for some in held
    ]

    def ask(step: str, *arguments: Any) -> Iterator[Any]:
        shared = [ray.put(a) for a in arguments]
        pending = [h.answer.remote(step, *shared) for h in holders]
        while pending:
            ready, pending = ray.wait(pending)
            yield ray.get(ready[0])

    try:
        with needing("clustering", gpus=gpus, count=len(holders)):
            yield ask, list(zip(holders, held, strict=True))
    finally:
        for holder in holders:
            ray.kill(holder)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
class Holder:
    """Some parts of the pool, clustered by one thread. All it holds is read from the table, so it
    may be lost at any time."""

    def __init__(self, table: str, parts: list[str], width: int, gpu: bool):
        single_thread()
        self.table, self.parts, self.width = PartedTable(locate(table)), parts, width
        self.shard = Shard([partial(self._read, name) for name in parts], gpu=gpu)

    def answer(self, step: str, *arguments: Any) -> Any:
        """What a method of `Shard` says."""
        return getattr(self.shard, step)(*arguments)

    def write(self, place: str, level: Level, centers: Centers, part: str) -> None:
        """A part of clusters."""
        found, distance = self.shard.assigned(level, centers, self.parts.index(part))
        uid = read_table(self.table.part(part), ["uid"])["uid"]
        columns = {"uid": uid, "cluster": pa.array(found), "distance": pa.array(distance)}
        write_table(locate(place), pa.table(columns))

    def _read(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        uid, embedding = read_part(self.table, part, self.width)
        return uid_words(uid), embedding


def _write_parts(
    out: Location, level: Level, centers: Centers, held: list[tuple[Any, list[str]]]
) -> None:
    """The parts that are missing, each by the actor that holds its rows."""
    shared = ray.put(level), ray.put(centers)
    missing = [(h, deque(n for n in names if not _part(out, n).exists())) for h, names in held]
    total = sum(len(names) for _, names in held)
    done = total - sum(len(left) for _, left in missing)
    pending: dict[ray.ObjectRef, tuple[Any, deque[str]]] = {}

    def send(holder: Any, left: deque[str]) -> None:
        if left:
            name = left.popleft()
            pending[holder.write.remote(_part(out, name).uri, *shared, name)] = holder, left

    with Progress("clusters", total, "parts") as progress:
        progress.update(done)
        for some in missing * _UNDER_WAY:
            send(*some)
        while pending:
            ready, _ = ray.wait(list(pending))
            ray.get(ready)
            send(*pending.pop(ready[0]))
            progress.update(done := done + 1)


def _part(out: Location, name: str) -> Location:
    return out / f"part-{name}.parquet"


def _once(place: Location, fit: Callable[[], Found]) -> Found:
    """Clusters from their file, which is written first if it is not there."""
    if not place.exists():
        found = fit()
        centers = found.centers
        value = pa.array(centers.value.ravel())
        columns = {
            "cluster": pa.array(np.arange(len(centers.value), dtype=np.int32)),
            "coarse": pa.array(centers.group.astype(np.int32)),
            "size": pa.array(found.size),
            "inertia": pa.array(found.inertia),
            "centroid": pa.FixedSizeListArray.from_arrays(value, centers.value.shape[1]),
        }
        facts = {n: getattr(found, n) for n in ("iterations", "reseeded", "converged")}
        metadata = {"facts": json.dumps(facts)}
        write_table(place, pa.table(columns).replace_schema_metadata(metadata))
        return found
    table = read_table(place)
    centers = Centers(matrix(table["centroid"]), table["coarse"].to_numpy())
    facts = json.loads(table.schema.metadata[b"facts"])
    return Found(centers, table["size"].to_numpy(), table["inertia"].to_numpy(), **facts)


def _facts(levels: list[Found]) -> dict[str, Any]:
    """Of the last level, with the iterations and new starts of all."""
    last = levels[-1]
    return {
        "clusters": len(last.size),
        "coarse": len(levels[0].size) if len(levels) > 1 else 0,
        "iterations": sum(f.iterations for f in levels),
        "converged": all(f.converged for f in levels),
        "reseeded": sum(f.reseeded for f in levels),
        "inertia": float(last.inertia.sum()),
        "smallest": int(last.size.min()),
        "median": float(np.median(last.size)),
        "largest": int(last.size.max()),
    }
