"""embedding table → score table, one part a shard."""

import logging
import time
from dataclasses import replace
from typing import Any

from coreset_ray.config import Config, fingerprint
from coreset_ray.core import costs, stability
from coreset_ray.core.method import PerSample, Sampled
from coreset_ray.distributed.blocks import PoolFiles, signals_of
from coreset_ray.distributed.score import Layout, rounding, score_draws, score_rows
from coreset_ray.distributed.session import choose_device, cluster
from coreset_ray.io.embedding_parts import width_of
from coreset_ray.io.ledger import Ledger
from coreset_ray.io.tables import PartedTable
from coreset_ray.io.workspace import Stage, Workspace
from coreset_ray.telemetry.run import as_stage
from coreset_ray.version import __version__
from pipelines.inputs import (
    NotReady,
    filled,
    key_of,
    nothing_to_do,
    on_cluster,
    pool_table,
    scratch_root,
    workspace_of,
)
from pipelines.report import noise_table, rounding_line
from pipelines.signals import signal_folders, signal_stages

_log = logging.getLogger(__name__)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any]]:
    """Where this configuration's scores lie, and the snapshot they are of."""
    snapshot = pool_table(config).snapshot()
    method = config.score.build()
    content = [key_of(snapshot), config.score.method, method, config.score.seed]
    if config.score.until is not None:
        content.append(config.score.until.model_dump())
    content += _rounding(config)
    content += [signal_stages(config, method.needs)] if signals_of(method.needs) else []
    stage = workspace_of(config).stage("scores", config.score.method, fingerprint(content))
    return stage, snapshot


@as_stage("score")
def run(config: Config) -> dict[str, Any]:
    """Scores the pool; returns the stage's record and the report of its stability."""
    stage, snapshot = stage_of(config)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return _told(record)
    method = config.score.build()
    parts = filled(snapshot)
    start = time.monotonic()
    table = pool_table(config).parts
    with on_cluster(config, config.compute.wait_for):
        if isinstance(method, PerSample):
            files = PoolFiles(table.folder.uri, signal_folders(config, method.needs))
            outcome = score_rows(method, config.score.seed, files, list(parts), stage.folder)
        else:
            assert isinstance(method, Sampled), f"no runner for {type(method).__name__}"
            effect = None
            if _rounding(config):
                effect = rounding(method, config.score.seed, table, parts, config.score.columns)
            outcome = score_draws(
                *(method, config.score.seed, table, parts, stage.folder),
                *(ledger_of(config, snapshot), layout_of(config, snapshot)),
                config.score.until.stability if config.score.until else None,
            )
            outcome["rounding"] = effect
    record = {
        "method": config.score.method,
        "params": method.settings(),
        "seed": config.score.seed,
        "columns": config.score.columns,
        "snapshot": key_of(snapshot),
        "table": snapshot["table"],
        "rows": snapshot["rows"],
        "parts": parts,
        "sums": ledger_of(config, snapshot).folder.path.rsplit("/", 1)[1],
        **outcome,
        "seconds": round(time.monotonic() - start, 2),
        "version": __version__,
    }
    _log.info(
        "score: %s over %d images in %.1f s, in %s",
        *(config.score.method, snapshot["rows"], record["seconds"], stage.folder.uri),
    )
    dropped = outcome["facts"].get("constant_dimensions_dropped")
    if dropped:
        _log.warning(
            "score: %d of %d dimensions do not vary over this pool and are never drawn",
            *(len(dropped), outcome["facts"]["dimensions"]),
        )
    if (noise := outcome.get("stability")) and (words := stability.in_words(noise)):
        _log.warning("score: %s", words)
    return _told(stage.finish(record))


def _told(record: dict[str, Any]) -> dict[str, Any]:
    noise, effect = record.get("stability"), record.get("rounding")
    told = [noise_table(noise)] if noise else []
    return record | {"report": "\n".join([*told, *([rounding_line(record)] if effect else [])])}


def _rounding(config: Config) -> list[str]:
    """What columns add to the content of scores: nothing where they hold the table's numbers."""
    finer = costs.value_bytes(config.score.columns) < costs.value_bytes(config.embed.dtype)
    return [config.score.columns] if finer else []


def ledger_of(config: Config, snapshot: dict[str, Any]) -> Ledger:
    """Where the sums of draws lie, whatever their number."""
    method = config.score.build()
    params = {k: v for k, v in method.settings().items() if k != "draws"}
    content = [key_of(snapshot), config.score.method, params, config.score.seed]
    content += _rounding(config)
    stage = workspace_of(config).stage("sums", config.score.method, fingerprint(content))
    return Ledger(stage.folder)


def layout_of(config: Config, snapshot: dict[str, Any]) -> Layout:
    """How many processes share the draws, and where they lay out the pool's columns."""
    compute = config.compute
    layout = layout_for(
        *(workspace_of(config), key_of(snapshot)),
        *(compute.score_workers, compute.row_shards, compute.scratch, config.score.columns),
    )
    return on_gpus(layout, config)


def on_gpus(layout: Layout, config: Config) -> Layout:
    """The same with a GPU for each worker, where there are any and each worker holds all rows."""
    compute = config.compute
    if choose_device(compute.device) == "cpu" or layout.row_shards > 1:
        return layout
    return replace(layout, workers=compute.score_workers or max(1, int(cluster().gpus)), gpus=1.0)


def layout_for(
    workspace: Workspace,
    snapshot: str,
    workers: int | None = None,
    row_shards: int | None = None,
    scratch: str | None = None,
    columns: str = "float32",
) -> Layout:
    """Workers and row shards as given, else as the pool's columns fit the nodes' memory."""
    on = cluster()
    rows, dims = _size_of(workspace, snapshot) if row_shards is None else (0, 0)
    width = costs.value_bytes(columns)
    spreading = costs.choose_spreading(rows, dims, on.nodes, workers, row_shards, width)
    return layout_at(workspace, snapshot, spreading, on.cpus, scratch, columns)


def layout_at(
    workspace: Workspace,
    snapshot: str,
    spreading: costs.Spreading,
    cpus: float,
    scratch: str | None,
    columns: str,
) -> Layout:
    """Where the columns lie, and what each process holds of the cluster's CPUs."""
    each = 1.0 if spreading.workers * spreading.row_shards <= cpus else 0.0
    name = snapshot if columns == "float32" else f"{snapshot}-{columns}"
    place = f"{scratch_root(workspace, scratch)}/{name}"
    return Layout(spreading.workers, spreading.row_shards, each, place, columns=columns)


def _size_of(workspace: Workspace, snapshot: str) -> tuple[int, int]:
    """Rows and dimensions of the pool in a snapshot; none where its record was deleted."""
    if not (told := workspace.snapshot(snapshot)).exists():
        return 0, 0
    record = told.read_json()
    table = PartedTable(workspace.root / "embeddings" / record["table"])
    return record["rows"], width_of(table, next(iter(filled(record))))


def finished(config: Config) -> tuple[Stage, dict[str, Any]]:
    """The finished stage and its record; `NotReady` when there is none."""
    stage, _ = stage_of(config)
    record = stage.done()
    if record is None:
        raise NotReady("this pool is not scored: run `coreset-ray score` with this configuration")
    return stage, record


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["score", *sys.argv[1:]])
