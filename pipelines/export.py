"""manifest → coreset shards with original bytes, an index and plain lists."""

import logging
from typing import Any

from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.export import export_samples
from coreset_ray.io.export import write_lists
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import read_table, write_table
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from pipelines import select_coreset
from pipelines.inputs import NotReady, nothing_to_do, on_cluster, pool_table, uri_of, workspace_of

_log = logging.getLogger(__name__)


def stage_of(config: Config) -> tuple[Stage, Stage, str]:
    """Where this configuration's shards lie, the selection they are of, and a hash of both."""
    selection, _ = select_coreset.finished(config)
    export = config.export
    content = fingerprint([selection.name, export.order, export.samples_per_shard])
    if export.out is not None:
        return Stage(locate(uri_of(config, export.out))), selection, content
    return workspace_of(config).stage("exports", config.name, content), selection, content


@as_stage("export")
def run(config: Config) -> dict[str, Any]:
    """Writes the coreset's shards; returns the stage's record."""
    stage, selection, content = stage_of(config)
    if (record := stage.done()) is not None:
        _refuse_other(stage, record, content)
        nothing_to_do(stage)
        return record
    _refuse_strangers(stage)
    manifest = read_table(selection.folder / "manifest.parquet")
    table = pool_table(config)
    with on_cluster(config, config.compute.wait_for.cpus_alone):
        index = export_samples(
            manifest,
            {shard.name: shard for shard in table.shards},
            table.parts,
            stage.folder,
            order=config.export.order,
            samples_per_shard=config.export.samples_per_shard,
        )
    write_table(stage.folder / "index.parquet", index)
    write_lists(stage.folder, index)
    shards = sorted(set(index["export_shard"].to_pylist()))
    _remove_unfinished(stage, shards)
    _log.info("export: %d images in %d shards, in %s", len(index), len(shards), stage.folder.uri)
    return stage.finish({"content": content, "selection": selection.name, "shards": shards})


def finished(config: Config) -> tuple[Stage, dict[str, Any]]:
    """The finished stage and its record; `NotReady` when there is none."""
    stage, _, content = stage_of(config)
    record = stage.done()
    if record is None:
        raise NotReady("nothing is exported: run `coreset-ray export` with this configuration")
    _refuse_other(stage, record, content)
    return stage, record


def _refuse_other(stage: Stage, record: dict[str, Any], content: str) -> None:
    if record.get("content") != content:
        raise ValueError(
            f"export.out={stage.folder.uri!r} holds the coreset of {record.get('selection')}: name "
            "another folder, or empty this one"
        )


def _refuse_strangers(stage: Stage) -> None:
    """An unfinished export of ours may be finished; a folder of anything else is not touched."""
    ours = ("index.parquet", "manifest.csv", "manifest.jsonl")
    for info in stage.folder.listing():
        name = info.base_name
        if not (name in ours or name.endswith(".partial") or _is_shard_of_ours(name)):
            raise ValueError(
                f"export.out={stage.folder.uri!r} holds {name!r}, which no export wrote: name an "
                "empty folder"
            )


def _remove_unfinished(stage: Stage, shards: list[str]) -> None:
    """Shards that an earlier, unfinished export left here are no part of this coreset."""
    for info in stage.folder.listing():
        if _is_shard_of_ours(info.base_name) and info.base_name not in shards:
            (stage.folder / info.base_name).delete()


def _is_shard_of_ours(name: str) -> bool:
    return name.endswith(".tar") and name[:-4].isdigit()


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["export", *sys.argv[1:]])
