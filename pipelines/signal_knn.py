"""embedding table → the nearest neighbours of every image."""

import logging
import time
from typing import Any

from coreset_ray.clustering.neighbors import choose_kind
from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.neighbors import Search, find_neighbors
from coreset_ray.distributed.session import choose_device, cluster
from coreset_ray.io.embedding_parts import width_of
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from pipelines.inputs import (
    filled,
    finish_signal,
    key_of,
    nothing_to_do,
    on_cluster,
    pool_table,
    workspace_of,
)

_log = logging.getLogger(__name__)

_ENOUGH = 0.95  # recall


def before(config: Config) -> tuple[str, ...]:
    """The signals that this configuration's are made of."""
    return ()


def stage_of(config: Config) -> tuple[Stage, dict[str, Any], Search]:
    """Where this configuration's neighbours lie, the snapshot they are of, and how they are
    found."""
    table = pool_table(config)
    snapshot, wanted = table.snapshot(), config.signals.knn
    parts = filled(snapshot)
    rows = sum(parts.values())
    if wanted.k >= rows:
        raise ValueError(
            f"signals.knn.k={wanted.k}: the pool has {rows} images, so each has at most {rows - 1} "
            "neighbours; set it lower"
        )
    kind = choose_kind(rows) if wanted.index == "auto" else wanted.index
    inverted = (wanted.lists, wanted.probes) if kind != "flat" else (1, 1)
    search = Search(wanted.k, width_of(table.parts, next(iter(parts))), kind, *inverted)
    content = fingerprint([key_of(snapshot), search])
    return workspace_of(config).stage("signals", "knn", content), snapshot, search


@as_stage("knn")
def run(config: Config) -> dict[str, Any]:
    """Writes the neighbours if they are not there yet; returns their record."""
    stage, snapshot, search = stage_of(config)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return record
    parts, start = filled(snapshot), time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        on = cluster()
        gpu = choose_device(config.compute.device) == "cuda" and on.gpus >= 1
        facts = find_neighbors(
            *(pool_table(config).parts, parts, search, stage.folder),
            actors=int(on.gpus) if gpu else max(1, len(on.nodes)),
            threads=1 if gpu else max(1, int(on.cpus) // max(1, len(on.nodes))),
            gpus=1.0 if gpu else 0.0,
        )
    seconds = round(time.monotonic() - start, 2)
    _log.info(
        "knn: %d neighbours of %d images in %.1f s, recall %.3f, in %s",
        *(search.k, snapshot["rows"], seconds, facts["recall"], stage.folder.uri),
    )
    if facts["recall"] < _ENOUGH:
        _log.warning(
            "knn: the index finds %.1f%% of the true neighbours on a sample; raise "
            "signals.knn.probes, or set signals.knn.index=flat",
            100 * facts["recall"],
        )
    return finish_signal(
        *(stage, snapshot, seconds),
        {"made_of": [], **vars(search), **facts},
    )
