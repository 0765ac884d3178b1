"""new shards → embeddings of those alone → the next version of a standing selection."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from coreset_ray.config import Config, fingerprint, plain
from coreset_ray.core.selection import resolve_budget
from coreset_ray.io.labeled import read_identities
from coreset_ray.io.lease import Lease, hold
from coreset_ray.io.published import Published, Version, version_name
from coreset_ray.io.tables import MANIFEST, part_name, read_table, write_table
from coreset_ray.io.workspace import Stage
from coreset_ray.version import __version__
from coreset_ray.versions import versions
from pipelines import embed, export, reselect_difference, select_coreset
from pipelines.inputs import (
    key_of,
    listed_once,
    on_cluster,
    pool_table,
    workspace_of,
)
from pipelines.reselect_keep import Standing, standing_of, under_cap, write_kept
from pipelines.trainings import training_mark

_log = logging.getLogger(__name__)


def run(config: Config, wait: float = 0.0) -> dict[str, Any]:
    """Publishes a new version where shards or the configuration have changed since the last one;
    returns the record of the current version, with a `report` for a person.

    wait: seconds to wait for another run in the workspace.
    """
    if config.select.keep is not None:
        raise ValueError("select.keep: reselect.keep says what stays; leave it out")
    workspace = workspace_of(config)
    published = workspace.published(config.name)
    if (same := _unchanged(published, _wanted(config))) is not None:
        return same
    with hold(workspace.lease, wait=wait, command="reselect") as lease, listed_once():
        wanted = _wanted(config)
        if (same := _unchanged(published, wanted)) is not None:  # another run did it meanwhile
            return same
        with on_cluster(config):
            return _next(config, wanted, published, lease)


@dataclass(frozen=True)
class Wanted:
    """What a version is of. listing: what the pool's shards are, name, size and modification time
    of each; asked: all in the configuration that may change a version."""

    listing: str
    asked: str


def _wanted(config: Config) -> Wanted:
    written, table = plain(config), pool_table(config)
    sections = ("embed", "score", "signals", "select", "reselect", "export")
    listed = config.reselect.labeled
    own = read_identities(listed, "reselect.labeled")["uid"].to_pylist() if listed else []
    return Wanted(
        fingerprint(sorted(part_name(shard) for shard in table.shards)),
        training_mark(config, [table.stage.name, {s: written[s] for s in sections}, sorted(own)]),
    )


def _unchanged(published: Published, wanted: Wanted) -> dict[str, Any] | None:
    """What to tell where the current version is of the pool as it is, and asked for the same."""
    base = published.current()
    return _nothing(base) if base is not None and _is_of(base, asdict(wanted)) else None


def _is_of(base: Version, marks: dict[str, str]) -> bool:
    return marks == {name: base.record[name] for name in marks}


def _nothing(base: Version) -> dict[str, Any]:
    text = f"Nothing new: {base.name} is the selection of this pool, in {base.folder.uri}"
    return base.record | {"report": text}


def _next(config: Config, wanted: Wanted, published: Published, lease: Lease) -> dict[str, Any]:
    """Makes the next version, its difference to the one before, and publishes it."""
    base, snapshot = published.current(), embed.run(config)
    same = {"asked": wanted.asked, "snapshot": key_of(snapshot)}
    if base is not None and _is_of(base, same):
        return _nothing(base)  # shards were only touched
    now = standing_of(config, base, snapshot)
    total = _total(config, now, base, snapshot["rows"])
    own, stage, derived = _choose(config, now, total)
    exported = "" if derived is None else _export(derived)
    number, folder = published.begin(lease)
    manifest = _manifest(base, own, stage)
    write_table(folder / "manifest.parquet", manifest)
    told = reselect_difference.write(config, base, now, manifest, snapshot, folder)
    record = {
        **{"version": number, "base": None if base is None else base.number},
        **{**asdict(wanted), "snapshot": key_of(snapshot)},
        **{"table": snapshot["table"], "pool": snapshot["rows"]},
        **{"images": len(manifest), **told["counts"]},
        **{"selection": None if stage is None else stage.name, "exported": exported},
        "manifest": "manifest.parquet",
    }
    provenance = {"versions": {"coreset_ray": __version__, **versions()}, "config": plain(config)}
    (folder / "selection.json").write_json(record | provenance | {"name": config.name})
    version = published.publish(number, record, lease)
    _log.info("reselect: published %s, %d images", version.folder.uri, len(manifest))
    return record | {"report": told["report"]}


def _total(config: Config, now: Standing, base: Version | None, rows: int) -> int:
    """Images of the next version."""
    if base is not None and config.reselect.add is not None:
        stays = now.own if config.reselect.keep == "labeled" else now.before
        return max(len(stays), len(now.own)) + config.reselect.add
    total = resolve_budget(config.select.budget, rows)
    if total < len(now.own):
        _log.warning(
            "select.budget=%s is %d images, and %d stay already: nothing is added",
            *(config.select.budget, total, len(now.own)),
        )
    return max(total, len(now.own))


def _choose(
    config: Config, now: Standing, total: int
) -> tuple[pa.Table, Stage | None, Config | None]:
    """The images that stay, and the finished selection of those beside them; None of none."""
    own = now.own
    derived = _beside(config, own, total)
    if derived is None:
        return own, None, None
    stage = select_coreset.make(derived)
    if config.reselect.churn < 1 and len(now.before):
        chosen = read_table(stage.folder / "manifest.parquet", ["uid"])
        capped = under_cap(config, now, chosen, total)
        if capped is not None:
            own, derived = capped, _beside(config, capped, total)
            stage = None if derived is None else select_coreset.make(derived)
    return own, stage, derived


def _beside(config: Config, own: pa.Table, total: int) -> Config | None:
    """The configuration that chooses what is missing beside the images that stay."""
    if len(own) == 0:
        return config.replace("select", budget=total)
    if total == len(own):
        return None
    keep = write_kept(config, own).uri
    return config.replace("select", budget=total - len(own), keep=keep)


def _export(derived: Config) -> str:
    """Writes shards of the images that were added, which are those to label; where they lie."""
    export.run(derived)
    return export.finished(derived)[0].folder.uri


def _manifest(base: Version | None, own: pa.Table, stage: Stage | None) -> pa.Table:
    """What stays, as the version before has it, and what was added, in the order of choice."""
    known: dict[str, dict[str, Any]] = {}
    if base is not None:
        known = {row["uid"]: row for row in read_table(base.manifest).to_pylist()}
    rows = []
    for uid, shard, key in zip(*(own[name].to_pylist() for name in own.column_names), strict=True):
        row = known.get(uid)
        reason = "labeled already" if row is None else _since(row["reason"], base)
        old = row or {"score": None, "weight": 1.0}
        rows.append({"uid": uid, "shard": shard, "key": key, **old, "reason": reason})
    if stage is not None:
        rows += read_table(stage.folder / "manifest.parquet").to_pylist()
    for rank, row in enumerate(rows):
        row["rank"] = rank
    return pa.Table.from_pylist(rows, schema=MANIFEST)


def _since(reason: str, base: Version | None) -> str:
    assert base is not None, "a row of an earlier version has one"
    return reason if reason.startswith("kept since") else f"kept since {version_name(base.number)}"


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["reselect", *sys.argv[1:]])
