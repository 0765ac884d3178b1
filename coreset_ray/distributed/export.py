"""Finds and copies chosen samples on the cluster: a task a source shard, a task a new shard."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

from coreset_ray.distributed.progress import Progress
from coreset_ray.io.export import export_key, find_members, grouped, write_shard
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.shards import Shard
from coreset_ray.io.tables import PartedTable, part_name, read_table

_UNDER_WAY = 256  # tasks submitted ahead


def locate_members(
    shards: Mapping[str, Shard], rows: pa.Table, table: PartedTable | None = None
) -> pa.Table:
    """Where every member of these samples lies, in the order of shard names.

    shards: the pool's shards by name; rows: columns shard and key. table: adds a column sha256,
    what each sample's image was when this table was made. Raises `RuntimeError` for a
    sample that its shard no longer holds.
    """
    wanted: dict[str, list[str]] = {}
    for shard, key in zip(rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True):
        wanted.setdefault(shard, []).append(key)
    names = sorted(wanted)
    folder = None if table is None else table.folder.uri
    tasks = [(shards[name], wanted[name], folder) for name in names]
    found = pa.concat_tables(_map(_find, tasks, "locate", "shards"))
    have = set(found.filter(found["image"])["uid"].to_pylist())
    missing = [uid for uid in rows["uid"].to_pylist() if uid not in have]
    if missing:
        raise RuntimeError(
            f"{len(missing)} chosen images are no longer in their shards (uid {missing[0]} first): "
            "run embed, score and select again"
        )
    return found


def export_samples(
    manifest: pa.Table,
    shards: Mapping[str, Shard],
    table: PartedTable,
    out: Location,
    *,
    order: str,
    samples_per_shard: int,
) -> pa.Table:
    """Writes 00000.tar … below `out` and returns the index: the manifest with each sample's new
    shard and key.

    order: `pool` keeps the order of the shards, `manifest` the ranking.
    """
    members = grouped(locate_members(shards, manifest, table), "uid")
    if order == "pool":
        place = {uid: number for number, uid in enumerate(members)}
        uids = manifest["uid"].to_pylist()
        manifest = manifest.take(sorted(range(len(uids)), key=lambda row: place[uids[row]]))
    keys = [
        export_key(*row)
        for row in zip(*(manifest[c].to_pylist() for c in ("shard", "key", "uid")), strict=True)
    ]
    targets, tasks = [], []
    for start in range(0, len(keys), samples_per_shard):
        name = f"{len(tasks):05d}.tar"
        rows = manifest.slice(start, samples_per_shard)
        chosen = [members[uid] for uid in rows["uid"].to_pylist()]
        targets += [name] * rows.num_rows
        new_keys = keys[start : start + samples_per_shard]
        tasks.append((pa.concat_tables(chosen), new_keys, (out / name).uri))
    _map(_copy, tasks, "export", "shards")
    index = manifest.append_column("export_shard", pa.array(targets, pa.string()))
    return index.append_column("export_key", pa.array(keys, pa.string()))


def _map(function: Any, tasks: Sequence[tuple], stage: str, unit: str) -> list[Any]:
    """Results of the tasks in their order, a bounded number under way."""
    results: list[Any] = [None] * len(tasks)
    pending: dict[ray.ObjectRef, int] = {}
    with Progress(stage, len(tasks), unit) as progress:
        for number, task in enumerate(tasks):
            if len(pending) >= _UNDER_WAY:
                _collect(pending, results)
            pending[function.remote(*task)] = number
            progress.update(number + 1 - len(pending))
        while pending:
            _collect(pending, results)
            progress.update(len(tasks) - len(pending))
    return results


def _collect(pending: dict[ray.ObjectRef, int], results: list) -> None:
    ready, _ = ray.wait(list(pending), num_returns=1)
    results[pending.pop(ready[0])] = ray.get(ready[0])


@ray.remote(num_cpus=1)
def _find(shard: Shard, keys: list[str], table: str | None) -> pa.Table:
    members = find_members(shard, keys)
    if table is None:
        return members
    embedded = read_table(PartedTable(locate(table)).part(part_name(shard)), ["uid", "sha256"])
    hashes = dict(zip(embedded["uid"].to_pylist(), embedded["sha256"].to_pylist(), strict=True))
    sha256 = [hashes.get(uid) for uid in members["uid"].to_pylist()]
    return members.append_column("sha256", pa.array(sha256, pa.string()))


@ray.remote(num_cpus=1)
def _copy(members: pa.Table, keys: list[str], out: str) -> None:
    """Writes one new shard."""
    samples = grouped(members, "uid").values()
    write_shard(
        locate(out),
        ((key, rows, rows["sha256"][0].as_py()) for key, rows in zip(keys, samples, strict=True)),
    )
