"""What stays of the version before: the images kept, what became of those that are not there any
more, and what a cap on churn adds."""

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.standing import hashes_of
from coreset_ray.io.filesystem import Location
from coreset_ray.io.labeled import IDENTITY, read_identities
from coreset_ray.io.published import Version
from coreset_ray.io.tables import PartedTable, read_table, write_table
from coreset_ray.io.workspace import Workspace
from pipelines.inputs import workspace_of


@dataclass(frozen=True)
class Standing:
    """before: manifest of the version before, without what left the pool; own: uid, shard, key of
    the images that stay, in their order; gone: uids that are no longer in the pool; altered: uids
    whose bytes are others now, so that a label of them no longer holds."""

    before: pa.Table
    own: pa.Table
    gone: frozenset[str]
    altered: frozenset[str]


def standing_of(config: Config, base: Version | None, snapshot: dict[str, Any]) -> Standing:
    """What stays, of the version before and of the list of labeled images."""
    told, rows = config.reselect, IDENTITY.empty_table()
    manifest = rows if base is None else read_table(base.manifest)
    listed = read_identities(told.labeled, "reselect.labeled") if told.labeled else rows
    images = pa.concat_tables([manifest.select(IDENTITY.names), listed])
    gone, altered = _lost(config, images, base, snapshot)
    left = ~pc.is_in(images["uid"], value_set=pa.array([*gone, *altered], pa.string())).to_numpy()  # type: ignore[attr-defined]
    manifest, listed = (
        manifest.filter(pa.array(left[: len(manifest)])),
        listed.filter(pa.array(left[len(manifest) :])),
    )
    own = {"previous": manifest.select(IDENTITY.names), "labeled": listed, "none": rows}[told.keep]
    return Standing(manifest, own, gone, altered)


def _lost(
    config: Config, images: pa.Table, base: Version | None, snapshot: dict[str, Any]
) -> tuple[frozenset[str], frozenset[str]]:
    """Which of these images are not in the pool any more, and which have other bytes.

    Only parts that are not those of the version before are read.
    """
    workspace = workspace_of(config)
    table = PartedTable(workspace.root / "embeddings" / snapshot["table"])
    now = {p["shard"]: p for p in snapshot["parts"]}
    then = parts_of(workspace, base)
    wanted: dict[str, list[str]] = {}
    earlier: dict[str, list[str]] = {}
    for uid, shard in zip(images["uid"].to_pylist(), images["shard"].to_pylist(), strict=True):
        part, old = now.get(shard), then.get(shard)
        if part is not None and (old is None or old["content"] != part["content"]):
            wanted.setdefault(part["part"], []).append(uid)
            if old is not None:
                earlier.setdefault(old["part"], []).append(uid)
    present, before = hashes_of(table, wanted), hashes_of(table, earlier)
    asked = {uid for uids in wanted.values() for uid in uids}
    absent = {
        uid
        for uid, shard in zip(images["uid"].to_pylist(), images["shard"].to_pylist(), strict=True)
        if shard not in now or (uid in asked and uid not in present)
    }
    altered = {uid for uid, told in before.items() if present.get(uid, told) != told}
    return frozenset(absent), frozenset(altered)


def parts_of(workspace: Workspace, base: Version | None) -> dict[str, dict[str, Any]]:
    """The parts that the version before was chosen from, by shard; none where its snapshot is
    not there any more."""
    if base is None or not (told := workspace.snapshot(base.record["snapshot"])).exists():
        return {}
    return {p["shard"]: p for p in told.read_json()["parts"]}


def under_cap(config: Config, now: Standing, chosen: pa.Table, total: int) -> pa.Table | None:
    """The images to start from instead, where a free choice would let more of the version before
    go than reselect.churn allows; None where it does not.

    chosen: uid of what was chosen beside now.own. Those that would go stay in the order in which
    the version before has them.
    """
    have = {*now.own["uid"].to_pylist(), *chosen["uid"].to_pylist()}
    before = now.before["uid"].to_pylist()
    going, most = (
        [u for u in before if u not in have],
        math.floor(config.reselect.churn * len(before)),
    )
    if len(going) <= most:
        return None
    back = {*going[: len(going) - most], *(u for u in before if u in have)}
    first = set(now.own["uid"].to_pylist())
    more = [u in back and u not in first for u in before]
    own = pa.concat_tables([now.own, now.before.select(IDENTITY.names).filter(pa.array(more))])
    if len(own) > total:
        raise ValueError(
            f"reselect.churn={config.reselect.churn} lets {most} of {len(before)} images go, and "
            f"{len(own)} would stay where select.budget asks for {total}: raise one of them"
        )
    return own


def write_kept(config: Config, own: pa.Table) -> Location:
    """A file of these images, for select.keep."""
    name = fingerprint(own["uid"].to_pylist())
    place = workspace_of(config).root / "kept" / f"{name}.parquet"
    if not place.exists():
        write_table(place, own)
    return place
