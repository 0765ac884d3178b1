"""A method that selects by itself, over the cluster: from a pool's files to the manifest."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from coreset_ray.core.alone import Alone, check_room
from coreset_ray.core.filter import check_left
from coreset_ray.core.greedy import Greedy
from coreset_ray.core.limits import SHARE_OUT, check_whole
from coreset_ray.core.rule import shares
from coreset_ray.core.selection import Selection
from coreset_ray.core.whole_set import Given
from coreset_ray.distributed.blocks import PoolFiles, check_present
from coreset_ray.distributed.greedy import choose_greedily
from coreset_ray.distributed.pivot import blocks_of
from coreset_ray.distributed.session import cluster
from coreset_ray.distributed.whole_set import choose_from_all
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import MANIFEST, PartedTable, read_table, write_manifest

REASON = "highest gain"
_IDENTITY = ["uid", "shard", "key"]


@dataclass(frozen=True)
class Start:
    """What a choice starts from. kept: (w,) uid strings of images that are chosen already, in
    their order; target: (t, m) embeddings, or None."""

    kept: tuple[str, ...] = ()
    target: np.ndarray | None = None


def choose_alone(
    method: Alone,
    seed: int,
    files: PoolFiles,
    parts: Mapping[str, int],
    k: int,
    manifest: Location,
    *,
    group: str | None = None,
    groups: int = 1,
    start: Start | None = None,
    partitions: int = 1,
) -> None:
    """Writes the manifest of the k rows chosen, in their order; the score is the gain.

    parts: rows of each, in the order that numbers rows. group: the column that says which of
    `groups` a row is of, of which each gives as many; partitions: of a method that needs all
    rows. Raises `ValueError` where such a method needs more memory than any machine has.
    """
    start = start or Start()
    firsts = np.cumsum([0, *parts.values()])[:-1].tolist()
    placed = blocks_of(list(zip(parts, firsts, parts.values(), strict=True)))
    told = ray.put((files, group, groups, start.kept))
    answers = ray.get([_look.remote(told, block) for block in placed])
    number = {uid: n for found, _ in answers for uid, n in found.items()}
    check_present(start.kept, number)
    kept = np.array([number[uid] for uid in start.kept], np.int64)
    sizes = np.sum([counts for _, counts in answers], axis=0)
    if files.filters:
        check_left(k, int(sizes.sum()) + len(kept), sum(parts.values()))
    check_room(k, int(sizes.sum()), len(kept))
    share = shares(k, sizes).tolist()
    if isinstance(method, Greedy):
        actors = max(1, int(cluster().cpus))
        found = choose_greedily(method, seed, files, parts, share, kept, group=group, actors=actors)
    else:
        each = row_bytes(method.needs, files, next(iter(parts)))
        width = row_widths(method.needs, files, next(iter(parts)))
        rows, scratch = int(sizes.max()) + len(kept), method.scratch(max(share) + len(kept), width)
        asked = rows, each, partitions, cluster().nodes
        check_whole(
            *asked,
            copies=method.copies,
            beside=method.beside(width),
            chosen=max(share),
            scratch=scratch,
            remedy=SHARE_OUT if method.weighs else None,
        )
        given = Given(kept, start.target)
        found = choose_from_all(
            method, seed, files, parts, share, given, group=group, partitions=partitions
        )
    rows = ray.put(found.rows)
    identities = [_identity.remote(files, block, rows) for block in placed]
    ray.get(_write.remote(found, manifest.uri, *identities))


def row_bytes(needs: tuple[str, ...], files: PoolFiles, part: str) -> int:
    """Bytes of a row of these columns in memory."""
    kinds = (getattr(kind, "value_type", kind) for kind in _kinds(needs, files, part).values())
    each = [8 if pa.types.is_integer(kind) else 4 for kind in kinds]
    width = row_widths(needs, files, part).values()
    return sum(map(operator.mul, each, width))


def row_widths(needs: tuple[str, ...], files: PoolFiles, part: str) -> dict[str, int]:
    """Numbers of a row in each of these columns."""
    kinds = _kinds(needs, files, part)
    return {name: getattr(kind, "list_size", 1) for name, kind in kinds.items()}


def _kinds(needs: tuple[str, ...], files: PoolFiles, part: str) -> dict[str, pa.DataType]:
    found = {}
    for name in needs:
        signal, _, column = name.rpartition(".")
        place = PartedTable(locate(files.table)).part(part)
        if signal:
            place = locate(files.signals[signal]) / f"part-{part}.parquet"
        with place.open_file() as source:
            found[name] = pq.read_schema(source).field(column).type
    return found


@ray.remote(num_cpus=1, max_retries=3)
def _look(
    told: tuple[PoolFiles, str | None, int, tuple[str, ...]], block: list[tuple[str, int, int]]
) -> tuple[dict[str, int], np.ndarray]:
    """Numbers of the rows to keep that lie here, by uid, and how many others each group has."""
    files, group, groups, kept = told
    wanted, found, counts = set(kept), {}, np.zeros(groups, np.int64)
    for part, first, rows in block:
        free = np.ones(rows, bool)
        if kept:
            uid = read_table(PartedTable(locate(files.table)).part(part), ["uid"])["uid"]
            here = [(i, u) for i, u in enumerate(uid.to_pylist()) if u in wanted]
            found |= {u: first + i for i, u in here}
            free[[i for i, _ in here]] = False
        of = files.group_of(part, rows, group)
        counts += np.bincount(of[free & (of >= 0)], minlength=groups)
    return found, counts


@ray.remote(num_cpus=1, max_retries=3)
def _identity(
    files: PoolFiles, block: list[tuple[str, int, int]], number: np.ndarray
) -> tuple[np.ndarray, pa.Table]:
    """The identity of those of these rows, by number, that lie here, and their places in the
    list."""
    places = [np.empty(0, np.int64)]
    found = [pa.schema([MANIFEST.field(name) for name in _IDENTITY]).empty_table()]
    for part, first, rows in block:
        here = np.flatnonzero((number >= first) & (number < first + rows))
        if len(here):
            own = read_table(PartedTable(locate(files.table)).part(part), _IDENTITY)
            found.append(own.select(_IDENTITY).take(pa.array(number[here] - first)))
            places.append(here)
    return np.concatenate(places), pa.concat_tables(found)


@ray.remote(num_cpus=1)
def _write(chosen: Selection, manifest: str, *found: tuple[np.ndarray, pa.Table]) -> None:
    order = np.argsort(np.concatenate([places for places, _ in found]))
    table = pa.concat_tables([rows for _, rows in found]).take(pa.array(order))
    write_manifest(locate(manifest), table, chosen.gains, chosen.weights, REASON)
