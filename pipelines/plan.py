"""A configuration → what its run would need and take, measured for some seconds on the cluster."""

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreset_ray.config import Config
from coreset_ray.core import costs, forecast, limits, plan_text
from coreset_ray.core.forecast import Encoding, PoolSize, Stage
from coreset_ray.core.method import Sampled
from coreset_ray.core.selection import resolve_budget
from coreset_ray.distributed.calibrate import Calibration, free_bytes, free_here
from coreset_ray.distributed.calibrate_arithmetic import multiply_rate
from coreset_ray.distributed.calibrate_choice import time_choice
from coreset_ray.distributed.calibrate_pool import Reading, probe_encoders, read_some
from coreset_ray.distributed.choose import processes_for
from coreset_ray.distributed.embed import plan_embedding
from coreset_ray.distributed.score import Layout
from coreset_ray.distributed.session import Cluster, choose_device, cluster, session
from coreset_ray.io.embedding_parts import width_of
from coreset_ray.io.layout import is_finished
from coreset_ray.io.tables import Commit
from pipelines import export, score, select_coreset, signals
from pipelines.inputs import (
    NotReady,
    Table,
    encoders,
    filled,
    key_of,
    pool_table,
    workspace_of,
)
from pipelines.plan_choice import Timer, check_choice, choice_stage, filters_stage
from pipelines.plan_signals import signal_stages

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """What the workspace holds already. commits: of embedded shards; snapshot: None while some
    are missing; table_bytes: of the embedding table; left: draws still to be made; finished: names
    of stages."""

    commits: dict[str, Commit]
    snapshot: dict[str, Any] | None
    table_bytes: int
    left: int
    finished: frozenset[str]


def run(config: Config) -> dict[str, Any]:
    """The plan: what a run needs, where it lies and how long each stage takes, and `report`.

    Writes nothing into the workspace. Raises `ValueError`, with the arithmetic and what to
    change, where the run cannot fit into memory or on disk.
    """
    asked = config
    if not config.scores:
        config = config.baseline(config.score.seed)
    table = pool_table(config)
    state = _state(config, table)
    with session(config.compute.address, config.compute.wait_for):
        on = cluster()
        _log.info("plan: reading some shards")
        reading = read_some(table.shards)
        encoding = _encoding(config, table, state, on)
        pool = _pool(table, state, reading, encoding)
        check_choice(asked, pool, on)
        layout = _layout(config, pool, state, on)
        _check_disk(config, pool, state, layout)
        _log.info("plan: measuring rows")
        method = config.score.build()
        source = (table.parts.folder.uri, filled(state.snapshot)) if state.snapshot else None
        trials = Calibration(method, config.score.seed, pool.rows, pool.dims, source)
        rows = trials.rows()
        needs = _memory(config, pool, layout, on, encoding, rows)
        drawing = None
        if layout is not None and state.left and "score" not in state.finished:
            _log.info("plan: drawing")
            drawing = trials.draws(layout)
        stages = _stages(config, pool, state, layout, on, reading, encoding, drawing, rows)
        gpu = choose_device(config.compute.device) == "cuda"
        rate = multiply_rate(on) if signals.wanted_by(asked) and not gpu else None
        stages = _chosen(asked, stages, pool, on, rows, time_choice)
        stages[1:1] = signal_stages(asked, pool, on, rate, rows, gpu)
    outcome = {
        "pool": asdict(pool),
        "cluster": {"nodes": [list(node) for node in on.nodes], "gpus": on.gpus},
        "layout": _layout_told(pool, layout),
        "memory": [asdict(need) | {"total": need.total} for need in needs],
        "draws_per_second": _rate(method, pool, layout, drawing, rows),
        "stages": {stage.name: asdict(stage) for stage in stages},
        "measured": {
            "reading": asdict(reading),
            "encoding": asdict(encoding) if encoding else None,
            "drawing": asdict(drawing) if drawing else None,
            "rows": asdict(rows),
        },
    }
    return outcome | {"report": plan_text.report(outcome)}


def _state(config: Config, table: Table) -> _State:
    commits = table.parts.committed(table.shards)
    snapshot, left, finished = None, getattr(config.score.build(), "draws", 0), set()
    with suppress(NotReady):
        snapshot = table.snapshot()
        chunks = [r for r in score.ledger_of(config, snapshot).usable(left)] if left else []
        left -= sum(record.draws for record in chunks)
        for name, stage in (("score", score), ("select", select_coreset), ("export", export)):
            stage.finished(config)
            finished.add(name)
    places = [table.parts.part(c.part) for c in commits.values() if c.rows]
    sizes = {i.path: i.size for i in places[0].parent.listing()} if places else {}
    size = sum(sizes[place.path] for place in places)
    return _State(commits, snapshot, size, left, frozenset(finished))


def _encoding(config: Config, table: Table, state: _State, on: Cluster) -> Encoding | None:
    """What the encoders cost; None where nothing is left to embed."""
    missing = [s for s in table.shards if s.name not in state.commits]
    if not missing:
        return None
    compute = config.compute
    device = choose_device(compute.device)
    plan = plan_embedding(on, device, compute.batch_size, compute.encoders, compute.encoder_gpus)
    _log.info("plan: loading the encoders in %d processes", plan.encoders)
    return probe_encoders(
        *(missing, encoders(config), plan, on),
        precision=config.embed.precision,
        max_pixels=config.embed.max_pixels,
    )


def _pool(table: Table, state: _State, reading: Reading, encoding: Encoding | None) -> PoolSize:
    missing = [s for s in table.shards if s.name not in state.commits]
    size = sum(s.size for s in missing)
    estimated = reading.rows(size)
    if (rows := sum(c.rows for c in state.commits.values()) + estimated) == 0:
        raise ValueError(
            f"pool.shards: no image was found in {len(table.shards)} shards; see that they hold "
            ".jpg, .png, .webp, .bmp or .tif members"
        )
    parts = [c.part for c in state.commits.values() if c.rows]
    dims = encoding.width if encoding else width_of(table.parts, parts[0])
    return PoolSize(
        *(len(table.shards), sum(s.size for s in table.shards), rows, dims),
        *(len(missing), size, estimated, not missing),
    )


def _layout(config: Config, pool: PoolSize, state: _State, on: Cluster) -> Layout | None:
    """How the pool would be spread; None for a method that needs no columns."""
    if not isinstance(config.score.build(), Sampled):
        return None
    compute = config.compute
    spreading = costs.choose_spreading(
        *(pool.rows, pool.dims, on.nodes, compute.score_workers, compute.row_shards),
        costs.value_bytes(config.score.columns),
    )
    key = key_of(state.snapshot) if state.snapshot else "SNAPSHOT"
    workspace = workspace_of(config)
    columns = config.score.columns
    layout = score.layout_at(workspace, key, spreading, on.cpus, compute.scratch, columns)
    return score.on_gpus(layout, config)


def _spreading(layout: Layout) -> costs.Spreading:
    return costs.Spreading(layout.workers, layout.row_shards)


def _memory(
    config: Config,
    pool: PoolSize,
    layout: Layout | None,
    on: Cluster,
    encoding: Encoding | None,
    rows: forecast.RowCosts,
) -> list[costs.NodeNeed]:
    """What each node needs; `ValueError` where one has less."""
    if encoding is not None:
        limits.check_encoders(encoding.actors, encoding.memory, on.nodes)
    method = config.score.build()
    if layout is None or not isinstance(method, Sampled):
        return []
    return limits.check_memory(
        *(pool.rows, pool.dims, method.channels, _spreading(layout), on.nodes, rows.base),
        layout.width,
    )


def _laid_out(layout: Layout) -> bool:
    """Whether this machine has the columns already."""
    count = layout.row_shards
    return all(is_finished(Path(layout.scratch, f"{i}-of-{count}")) for i in range(count))


def _check_disk(config: Config, pool: PoolSize, state: _State, layout: Layout | None) -> None:
    """`ValueError` where the workspace or the scratch folder has too little room."""
    method, root = config.score.build(), workspace_of(config).root
    k, n = resolve_budget(config.select.budget, pool.rows), pool.rows
    needs = {
        "embeddings": costs.embedding_bytes(
            *(pool.missing_rows, pool.dims, config.embed.dtype, pool.missing_shards)
        )
    }
    columns = 0
    if layout is not None and isinstance(method, Sampled):
        needs["sums"] = costs.ledger_bytes(n, method.channels, layout.workers)
        if not _laid_out(layout):
            columns = layout.row_shards * costs.columns_total(
                *(n, pool.dims, layout.row_shards, layout.width)
            )
    needs["scores"] = 0 if "score" in state.finished else costs.score_bytes(n, pool.shards)
    chosen = pool.image_bytes * k // n
    needs["exported images"] = 0 if "export" in state.finished or config.export.out else chosen
    remedies = ["Free space there", "set workspace to a larger disk or a bucket"]
    if config.embed.dtype == "float32" and pool.missing_rows:
        remedies.append("set embed.dtype=float16, which halves the embeddings")
    scratch = None if layout is None else layout.scratch
    if root.local:
        if scratch is not None and scratch.startswith(f"{root.path}/"):
            needs["columns"], scratch = columns, None
            remedies.append("set compute.scratch to a larger disk for the columns")
        limits.check_disk(root.path, free_here(root.path), needs, remedies)
    if scratch is not None:
        limits.check_disk(
            f"compute.scratch {scratch!r} of a node",
            *(free_bytes(scratch), {"columns": columns}),
            ["Free space there", "set compute.scratch to a larger disk"],
        )


def _stages(
    config: Config,
    pool: PoolSize,
    state: _State,
    layout: Layout | None,
    on: Cluster,
    reading: Reading,
    encoding: Encoding | None,
    drawing: forecast.Drawing | None,
    rows: forecast.RowCosts,
) -> list[Stage]:
    method, k = config.score.build(), resolve_budget(config.select.budget, pool.rows)
    table = state.table_bytes + costs.embedding_bytes(
        *(pool.missing_rows, pool.dims, config.embed.dtype, pool.missing_shards)
    )
    if layout is not None and isinstance(method, Sampled):
        scoring = forecast.score_stage(
            *(pool, table, method.channels, state.left, _spreading(layout), len(on.nodes)),
            *(_laid_out(layout), drawing, rows, layout.width),
        )
    else:
        scoring = forecast.rows_stage(pool, table, on.cpus, rows)
    processes = processes_for(pool.shards, on.cpus)
    stages = [
        forecast.embed_stage(pool, encoding, config.embed.dtype),
        scoring,
        forecast.select_stage(pool, k, processes, rows),
        forecast.export_stage(pool, k, reading.rate, on.cpus, rows.start),
    ]
    stages = [Stage(s.name, 0, 0, 0.0, "finished") if s.name in state.finished else s
              for s in stages]  # fmt: skip
    told = "not planned" if config.evaluate is not None else "not configured"
    return [*stages, Stage("evaluate", 0, 0, None, told)]


def _chosen(
    config: Config,
    stages: list[Stage],
    pool: PoolSize,
    on: Cluster,
    rows: forecast.RowCosts,
    timer: Timer,
) -> list[Stage]:
    """With filters, and with a choice without scores, which is timed; not planned where a setting
    is searched."""
    told = {}
    if not config.scores:
        _log.info("plan: choosing")
        told["score"] = Stage("score", 0, 0, 0.0, "no scores")
        told["select"] = choice_stage(config, pool, on, rows, timer)
    elif config.selector()[2]:
        told["select"] = Stage("select", 0, 0, None, "not planned")
    chosen = [told.get(s.name, s) for s in stages]
    if (filters := filters_stage(config, pool, on, rows, timer)) is not None:
        chosen.insert([s.name for s in chosen].index("select"), filters)
    return chosen


def _layout_told(pool: PoolSize, layout: Layout | None) -> dict[str, Any] | None:
    if layout is None:
        return None
    width = layout.width
    files = costs.column_bytes(pool.rows, pool.dims, layout.row_shards, width)
    return {
        "workers": layout.workers,
        "row_shards": layout.row_shards,
        "columns": layout.columns,
        "files": files,
        "shard_bytes": sum(files.values()),
        "bytes": layout.row_shards * sum(files.values()),
        "folder": layout.scratch,
        "laid_out": _laid_out(layout),
    }


def _rate(
    method: Any,
    pool: PoolSize,
    layout: Layout | None,
    drawing: forecast.Drawing | None,
    rows: forecast.RowCosts,
) -> float | None:
    if layout is None or drawing is None:
        return None
    return forecast.draw_rate(drawing, pool.rows, method.channels, _spreading(layout), rows)


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["plan", *sys.argv[1:]])
