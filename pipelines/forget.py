"""Takes images that left the pool out of all that a workspace holds, and proves it by a search."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from coreset_ray.config import Config
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.lease import hold
from coreset_ray.io.mentions import Search, Wanted, search
from coreset_ray.io.tables import part_name, read_table, write_table
from coreset_ray.io.workspace import Workspace
from pipelines.inputs import Table, pool_table, scratch_root, workspace_of
from pipelines.reselect_difference import write_changes

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leaving:
    """shards: those that left the pool, or that came again as others; parts: their embedding parts
    that are not those of the pool as it is; uids: the images in these that the pool has not got."""

    shards: tuple[str, ...]
    parts: tuple[str, ...]
    uids: frozenset[str]


def run(
    config: Config, shards: Sequence[str] = (), *, yes: bool = False, wait: float = 0.0
) -> dict[str, Any]:
    """Removes every trace of these shards, by default of all that were in a version of the
    selection and are not in the pool as they were; without `yes` says what it would remove.

    Embedding parts are deleted, and every stage that holds their rows, which is made again when it
    is asked for; published versions and snapshots lose their rows and keep the rest. Raises
    `ValueError` for a shard that the pool still has as it was, `RuntimeError` where something is
    left.
    """
    workspace, table = workspace_of(config), pool_table(config)
    with hold(workspace.lease, wait=wait, command="forget"):
        stale = _stale_parts(workspace, table)
        leaving = _leaving(config, workspace, table, stale, shards)
        if not leaving.parts:
            return {"report": _nothing(config.name, stale)}
        wanted = Wanted(frozenset(leaving.parts), leaving.uids)
        before = search(workspace.root, wanted)
        if not yes:
            return {"report": _told(leaving, before, "would go; --yes does it")}
        _remove(config, workspace, before.found, wanted)
        after = search(workspace.root, wanted)
        outside = _outside(config, wanted)
    if left := {**after.found, **outside}:
        listed = "\n".join(f"  {path}: {count}" for path, count in left.items())
        raise RuntimeError(f"{len(left)} files still name what was to be forgotten:\n{listed}")
    proof = (
        f"Searched {after.files:,} files and {after.rows:,} rows again: none names an image or a "
        "part of them."
    )
    scratch = scratch_root(workspace, config.compute.scratch)
    elsewhere = (
        f"Not searched: {scratch} of other machines, which may hold the pool as it was; delete it "
        "there. Trained weights cannot forget."
    )
    return {"report": "\n".join([_told(leaving, before, "are gone"), proof, elsewhere])}


def _leaving(
    config: Config,
    workspace: Workspace,
    table: Table,
    stale: Mapping[str, set[str]],
    names: Sequence[str],
) -> Leaving:
    now = {shard.name: part_name(shard) for shard in table.shards}
    if names:
        for name in names:
            if name not in stale:
                raise ValueError(f"--shard {name!r}: this workspace has no such shard embedded")
            if name in now and not stale[name]:
                raise ValueError(
                    f"--shard {name!r} is in the pool: delete it there first, else it would be "
                    "embedded again"
                )
        chosen = tuple(names)
    else:
        chosen = tuple(s for s in _published_shards(config, workspace) if stale.get(s))
    parts = sorted(part for name in chosen for part in stale[name])
    gone = _uids(table, parts)
    return Leaving(chosen, tuple(parts), gone - _uids(table, [now[s] for s in chosen if s in now]))


def _nothing(name: str, stale: Mapping[str, set[str]]) -> str:
    """That nothing goes unasked, and what is there all the same."""
    others = sorted(shard for shard, parts in stale.items() if parts)
    told = f"Nothing to forget: no shard that a version of {name!r} was chosen from has left"
    if not others:
        return f"{told} the pool, and none else is embedded"
    some = "1 shard that is" if len(others) == 1 else f"{len(others):,} shards that are"
    return (
        f"{told} the pool. The workspace also holds {some} not in the pool as it was "
        f"({others[0]!r} first), from which no version was chosen: --shard NAME forgets one"
    )


def _stale_parts(workspace: Workspace, table: Table) -> dict[str, set[str]]:
    """Of every shard that is known in this embedding table, the parts that are not those of the
    pool as it is: none where it is there unchanged."""
    now = {part_name(shard) for shard in table.shards}
    return {shard: parts - now for shard, parts in _known_parts(workspace, table).items()}


def _known_parts(workspace: Workspace, table: Table) -> dict[str, set[str]]:
    """Every part of a shard in this embedding table, by the shard's name."""
    folder = table.stage.folder / "parts"
    found: dict[str, set[str]] = {}
    for info in folder.listing():
        if info.base_name.endswith(".done.json"):
            record = (folder / info.base_name).read_json()
            found.setdefault(record["shard"], set()).add(record["part"])
    for snapshot in _snapshots(workspace):
        told = snapshot.read_json()
        if told["table"] == table.stage.name:
            for part in told["parts"]:
                found.setdefault(part["shard"], set()).add(part["part"])
    return found


def _snapshots(workspace: Workspace) -> list[Location]:
    folder = workspace.root / "snapshots"
    infos = folder.listing()
    return [folder / info.base_name for info in infos if info.base_name.endswith(".json")]


def _published_shards(config: Config, workspace: Workspace) -> list[str]:
    """Shards that a version of the selection was chosen from."""
    found: set[str] = set()
    for version in workspace.published(config.name).versions():
        if (place := workspace.snapshot(version.record["snapshot"])).exists():
            found |= {part["shard"] for part in place.read_json()["parts"]}
    return sorted(found)


def _uids(table: Table, parts: Iterable[str]) -> frozenset[str]:
    found: set[str] = set()
    for part in parts:
        if (place := table.parts.part(part)).exists():
            found.update(read_table(place, ["uid"])["uid"].to_pylist())
    return frozenset(found)


def _remove(config: Config, workspace: Workspace, found: dict[str, int], wanted: Wanted) -> None:
    """What was derived goes first and the embedding parts last, so that a run that is killed can
    be given again."""
    root = workspace.root
    ours = f"selections/{config.name}/"
    for place in dict.fromkeys(_stage(path) for path in found if not _is_kept(path, ours)):
        _delete(root / place)
    for version in workspace.published(config.name).versions():
        if any(path.startswith(f"{ours}{version.name}/") for path in found):
            _rewrite_version(version.folder, wanted)
    for path in found:
        if path.startswith("embeddings/"):
            _delete(root / path)
    for path in found:
        if path.startswith("snapshots/"):
            _rewrite_snapshot(root / path, wanted)


def _is_kept(path: str, ours: str) -> bool:
    return path.startswith(("embeddings/", "snapshots/")) or (
        path.startswith(ours) and path[len(ours)] == "v"
    )


def _stage(path: str) -> str:
    """The folder of the stage that a file is of, KIND/NAME, or the file itself."""
    return "/".join(path.split("/")[:2])


def _delete(place: Location) -> None:
    """A file, or a stage: its done.json first, so that it is never taken for finished."""
    if place.info().type == pafs.FileType.File:
        place.delete()
        return
    (place / "done.json").delete()
    place.delete_folder()


def _rewrite_version(folder: Location, wanted: Wanted) -> None:
    """A published version without these images: its tables, its counts, its report."""
    before = read_table(folder / "manifest.parquet")
    manifest = _without(before, wanted)
    away = len(before) - len(manifest)
    write_table(folder / "manifest.parquet", manifest)
    changes = _without(read_table(folder / "difference.parquet"), wanted)
    told = (folder / "difference.json").read_json()
    write_changes(folder, changes, told | {"images": len(manifest)})
    for name in ("selection.json", "done.json"):
        record = (folder / name).read_json()
        forgotten = record.get("forgotten", 0) + away
        (folder / name).write_json(record | {"images": len(manifest), "forgotten": forgotten})


def _without(rows: pa.Table, wanted: Wanted) -> pa.Table:
    """A table without the rows of these images."""
    gone = pa.array(sorted(wanted.uids), pa.string())
    return rows.filter(pc.invert(pc.is_in(rows["uid"], value_set=gone)))  # type: ignore[attr-defined]


def _rewrite_snapshot(place: Location, wanted: Wanted) -> None:
    told = place.read_json()
    told["parts"] = [part for part in told["parts"] if part["part"] not in wanted.parts]
    told["rows"] = sum(part["rows"] for part in told["parts"])
    place.write_json(told)


def _outside(config: Config, wanted: Wanted) -> dict[str, int]:
    """What is left in folders of the configuration that lie elsewhere."""
    found: dict[str, int] = {}
    for place in filter(None, (config.export.out, config.compute.scratch)):
        folder = locate(place)
        found |= {f"{folder.uri}/{p}": n for p, n in search(folder, wanted).found.items()}
    return found


def _told(leaving: Leaving, found: Search, verb: str) -> str:
    """What is named where, in words."""
    kinds: dict[str, set[str]] = {}
    for path in found.found:
        kinds.setdefault(path.split("/")[0], set()).add(_stage(path))
    lines = [
        f"{len(leaving.shards)} shards that left the pool or came again as others, "
        f"{len(leaving.parts)} embedding parts, {len(leaving.uids)} images:",
        *(f"  {name}" for name in leaving.shards[:20]),
        *([f"  … and {len(leaving.shards) - 20} more"] if len(leaving.shards) > 20 else []),
        f"Of {found.files:,} files {len(found.found):,} name them; these {verb}:",
    ]
    for kind, stages in sorted(kinds.items()):
        some = ", ".join(sorted(stages)[:5]) + (" …" if len(stages) > 5 else "")
        how = " (rewritten without them)" if kind == "snapshots" else ""
        lines.append(f"  {kind}: {some}{how}")
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["forget", *sys.argv[1:]])
