"""Two versions of a standing selection, side by side: what was added, kept and dropped, how far
the new data differ from the old, and how many labels they deserve."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coreset_ray.clustering.drift import (
    COVERED,
    MOVED,
    Clusters,
    clusters_of,
    labels_to_cover,
    radius_of,
    shift,
)
from coreset_ray.config import Config
from coreset_ray.distributed.kept import Source, blocks_of, gather
from coreset_ray.distributed.standing import cluster_counts, nearest_kept, sample_rows
from coreset_ray.io.embedding_parts import width_of
from coreset_ray.io.filesystem import Location
from coreset_ray.io.published import Version
from coreset_ray.io.tables import PartedTable, read_table, write_table
from coreset_ray.io.workspace import Workspace
from pipelines.inputs import filled, workspace_of
from pipelines.reselect_keep import Standing, parts_of
from pipelines.reselect_text import markdown

CHANGES = ("added", "kept", "dropped", "gone", "altered")


def write(
    config: Config,
    base: Version | None,
    now: Standing,
    manifest: pa.Table,
    snapshot: dict[str, Any],
    folder: Location,
) -> dict[str, Any]:
    """Writes difference.parquet (uid, shard, key, change), difference.json and report.md; returns
    `counts` of each change and the `report`.

    manifest: of the new version. change: added, kept; dropped, though the pool still has it; gone,
    the pool no longer has it; altered, its bytes are others now (it may be added anew).
    """
    told: dict[str, Any] = {
        "version": folder.path.rsplit("/", 1)[1],
        "base": None if base is None else base.name,
        "images": len(manifest),
        "pool": snapshot["rows"],
    }
    if base is not None:
        told |= _drift(config, base, now, manifest, snapshot)
    return write_changes(folder, _changes(base, now, manifest), told)


def write_changes(folder: Location, changes: pa.Table, told: dict[str, Any]) -> dict[str, Any]:
    """Writes the three files; told: all of difference.json but what is counted of the changes.
    Returns as `write`."""
    counts = Counter(changes["change"].to_pylist())
    told = told | {
        "counts": {name: counts.get(name, 0) for name in CHANGES},
        "shards": _by_shard(changes),
    }
    write_table(folder / "difference.parquet", changes)
    (folder / "difference.json").write_json(told)
    report = markdown(told)
    with (folder / "report.md").replacing() as sink:
        sink.write(report.encode())
    return {"counts": told["counts"], "report": report}


def _changes(base: Version | None, now: Standing, manifest: pa.Table) -> pa.Table:
    """What became of each image of either version."""
    names = ["uid", "shard", "key"]
    before = manifest.slice(0, 0) if base is None else read_table(base.manifest)
    old, new = set(now.before["uid"].to_pylist()), set(manifest["uid"].to_pylist())
    marks = ["kept" if uid in old else "added" for uid in manifest["uid"].to_pylist()]
    away = []
    for uid in before["uid"].to_pylist():
        lost = "altered" if uid in now.altered else "dropped"
        away.append("gone" if uid in now.gone else "" if uid in old & new else lost)
    left = before.select(names).append_column("change", pa.array(away, pa.string()))
    left = left.filter(pa.array([bool(word) for word in away], pa.bool_()))
    mine = manifest.select(names).append_column("change", pa.array(marks, pa.string()))
    return pa.concat_tables([mine, left])


def _by_shard(changes: pa.Table) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for shard, change in zip(
        changes["shard"].to_pylist(), changes["change"].to_pylist(), strict=True
    ):
        counts = found.setdefault(shard, {})
        counts[change] = counts.get(change, 0) + 1
    return dict(sorted(found.items()))


def _drift(
    config: Config, base: Version, now: Standing, manifest: pa.Table, snapshot: dict[str, Any]
) -> dict[str, Any]:
    """How the data that came differ from those that were there, and what that asks for."""
    workspace, parts = workspace_of(config), filled(snapshot)
    table = PartedTable(workspace.root / "embeddings" / snapshot["table"])
    old_parts, new_parts = _split(workspace, base, snapshot, parts)
    told: dict[str, Any] = {
        "new_images": sum(new_parts.values()),
        "old_images": sum(old_parts.values()),
    }
    if not old_parts or not new_parts or base.record["table"] != snapshot["table"]:
        return told  # nothing to hold the new data against
    source = Source(table.folder.uri, width_of(table, next(iter(parts))))
    before = now.before["uid"]
    after = manifest["uid"]
    added, dropped = _without(after, before), _without(before, after)
    kept = gather(source, blocks_of(parts), [before, after, added, dropped])
    seed, most = config.score.seed, config.reselect.sample
    old = sample_rows(source, old_parts, most, seed, before)
    new = sample_rows(source, new_parts, most, seed, before)
    if len(old) < 2 or not len(new):
        return told
    clusters = clusters_of(old, new, seed)
    held = cluster_counts(kept, clusters.centroids, 4)
    return told | {
        "sampled": {"old": len(old), "new": len(new)},
        "shift": _shift(old, new),
        "coverage": _coverage(told["new_images"], old, new, kept, base),
        "clusters": _clusters(clusters, held),
    }


def _split(
    workspace: Workspace, base: Version, snapshot: dict[str, Any], parts: dict[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """The parts that the version before was chosen from, and those that have come since."""
    then = {part["content"] for part in parts_of(workspace, base).values()}
    old = {p["part"]: p["rows"] for p in snapshot["parts"] if p["rows"] and p["content"] in then}
    return old, {part: rows for part, rows in parts.items() if part not in old}


def _without(uids: pa.ChunkedArray, away: pa.ChunkedArray) -> pa.ChunkedArray:
    return uids.filter(pc.invert(pc.is_in(uids, value_set=away)))  # type: ignore[attr-defined]


def _shift(old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    by = shift(old, new)
    size = np.abs(by)
    largest = np.argsort(-size, kind="stable")[:5]
    return {
        "largest": {str(i): _finite(float(by[i])) for i in largest},
        "median": _finite(float(np.median(size))),
        "moved": float((size >= MOVED).mean()),
        "by_chance": float(np.sqrt(1 / len(old) + 1 / len(new))),
    }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _coverage(
    images: int,
    old: np.ndarray,
    new: np.ndarray,
    kept: list[Any],
    base: Version,
) -> dict[str, Any]:
    """What the coreset before covers of both, what this one covers, and the labels it takes to
    cover the new data as the old were."""
    near_old, near_new = nearest_kept(old, kept, 0), nearest_kept(new, kept, 0)
    radius = radius_of(near_old)
    halves = [labels_to_cover(new[i::2], near_new[i::2], radius) for i in range(2)]
    density = base.record["images"] / max(1, base.record["pool"])
    return {
        "covered": COVERED,
        "radius": radius,
        "outside_old": float((near_old < radius).mean()),
        "outside": float((near_new < radius).mean()),
        "outside_now": float((nearest_kept(new, kept, 1) < radius).mean()),
        "to_cover": labels_to_cover(new, near_new, radius),
        "to_cover_by_halves": sorted(halves),
        "in_proportion": round(density * images),
        "sampled_all": len(new) >= images,
    }


def _clusters(clusters: Clusters, held: np.ndarray) -> list[dict[str, Any]]:
    """A row for each cluster. held: images of the coreset before, of this one, added, dropped."""
    _, now, added, dropped = held
    return [
        {
            "cluster": c,
            "share_old": float(clusters.old[c]),
            "share_new": float(clusters.new[c]),
            "fresh": bool(clusters.fresh[c]),
            "kept": int(now[c] - added[c]),
            "added": int(added[c]),
            "dropped": int(dropped[c]),
        }
        for c in range(len(clusters.centroids))
    ]
