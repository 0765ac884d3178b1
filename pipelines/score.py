"""embedding table → score table, one part a shard."""

import logging
import tempfile
import time
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from coreset_ray.config import Config, fingerprint
from coreset_ray.core import stability
from coreset_ray.core.costs import Spreading, choose_spreading
from coreset_ray.core.method import PerSample, Sampled
from coreset_ray.distributed.score import Layout, score_draws, score_rows
from coreset_ray.distributed.session import choose_device, cluster, session
from coreset_ray.io.ledger import Ledger
from coreset_ray.io.tables import PartedTable
from coreset_ray.io.workspace import Stage, Workspace
from coreset_ray.version import __version__
from pipelines.inputs import NotReady, filled, key_of, pool_table
from pipelines.report import noise_table

_log = logging.getLogger(__name__)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any]]:
    """Where this configuration's scores lie, and the snapshot they are of."""
    snapshot = pool_table(config).snapshot()
    method = config.score.build()
    content = [key_of(snapshot), config.score.method, method, config.score.seed]
    if config.score.until is not None:
        content.append(config.score.until.model_dump())
    stage = Workspace(config.workspace).stage("scores", config.score.method, fingerprint(content))
    return stage, snapshot


def run(config: Config) -> dict[str, Any]:
    """Scores the pool; returns the stage's record and the report of its stability."""
    stage, snapshot = stage_of(config)
    if (record := stage.done()) is not None:
        _log.info("score: nothing to do, %s is finished", stage.folder.uri)
        return _told(record)
    method = config.score.build()
    parts = filled(snapshot)
    start = time.monotonic()
    table = pool_table(config).parts
    with session(config.compute.address):
        if isinstance(method, PerSample):
            outcome = score_rows(method, config.score.seed, table, list(parts), stage.folder)
        else:
            assert isinstance(method, Sampled), f"no runner for {type(method).__name__}"
            outcome = score_draws(
                *(method, config.score.seed, table, parts, stage.folder),
                *(ledger_of(config, snapshot), layout_of(config, snapshot)),
                config.score.until.stability if config.score.until else None,
            )
    record = {
        "method": config.score.method,
        "params": vars(method),
        "seed": config.score.seed,
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
    noise = record.get("stability")
    return record | {"report": noise_table(noise) if noise else None}


def ledger_of(config: Config, snapshot: dict[str, Any]) -> Ledger:
    """Where the sums of draws lie, whatever their number."""
    method = config.score.build()
    params = {k: v for k, v in vars(method).items() if k != "draws"}
    content = [key_of(snapshot), config.score.method, params, config.score.seed]
    stage = Workspace(config.workspace).stage("sums", config.score.method, fingerprint(content))
    return Ledger(stage.folder)


def layout_of(config: Config, snapshot: dict[str, Any]) -> Layout:
    """How many processes share the draws, and where they lay out the pool's columns."""
    compute = config.compute
    layout = layout_for(
        *(Workspace(config.workspace), key_of(snapshot)),
        *(compute.score_workers, compute.row_shards, compute.scratch),
    )
    if choose_device(compute.device) == "cpu" or layout.row_shards > 1:
        return layout
    return replace(layout, workers=compute.score_workers or max(1, int(cluster().gpus)), gpus=1.0)


def layout_for(
    workspace: Workspace,
    snapshot: str,
    workers: int | None = None,
    row_shards: int | None = None,
    scratch: str | None = None,
) -> Layout:
    """Workers and row shards as given, else as the pool's columns fit the nodes' memory."""
    on = cluster()
    if row_shards is None:
        rows, dims = _size_of(workspace, snapshot)
        spreading = choose_spreading(rows, dims, on.nodes, workers)
    else:
        spreading = choose_spreading(0, 0, on.nodes, workers, row_shards)
    return layout_at(workspace, snapshot, spreading, on.cpus, scratch)


def layout_at(
    workspace: Workspace, snapshot: str, spreading: Spreading, cpus: float, scratch: str | None
) -> Layout:
    """Where the columns lie, and what each process holds of the cluster's CPUs."""
    root = workspace.root
    scratch = scratch or (
        f"{root.path}/layouts" if root.local else f"{tempfile.gettempdir()}/coreset_ray/layouts"
    )
    each = 1.0 if spreading.workers * spreading.row_shards <= cpus else 0.0
    return Layout(spreading.workers, spreading.row_shards, each, f"{scratch}/{snapshot}")


def _size_of(workspace: Workspace, snapshot: str) -> tuple[int, int]:
    """Rows and dimensions of the pool in a snapshot; none where its record was deleted."""
    if not (told := workspace.snapshot(snapshot)).exists():
        return 0, 0
    record = told.read_json()
    table = PartedTable(workspace.root / "embeddings" / record["table"])
    return record["rows"], dimensions(table, next(iter(filled(record))))


def dimensions(table: PartedTable, part: str) -> int:
    """Of the embeddings in a part."""
    with table.part(part).open_file() as source:
        return pq.read_schema(source).field("embedding").type.list_size


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
