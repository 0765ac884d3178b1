"""embedding table → the k-means cluster of every image."""

import logging
import time
from dataclasses import asdict
from typing import Any

from coreset_ray.clustering.kmeans_fit import Clustering
from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.kmeans import find_clusters
from coreset_ray.distributed.session import choose_device, cluster
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from pipelines import classes
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


def before(config: Config) -> tuple[str, ...]:
    """The signals that this configuration's are made of."""
    return ()


def stage_of(config: Config) -> tuple[Stage, dict[str, Any], Clustering]:
    """Where this configuration's clusters lie, the snapshot they are of, and how they are found."""
    snapshot, wanted = pool_table(config).snapshot(), config.signals.clusters
    clustering = Clustering(
        **wanted.model_dump(exclude={"count"}),
        count=wanted.count or classes.count(config),
        seed=config.signals.seed,
    )
    content = fingerprint([key_of(snapshot), clustering])
    return workspace_of(config).stage("signals", "clusters", content), snapshot, clustering


@as_stage("clusters")
def run(config: Config) -> dict[str, Any]:
    """Writes the clusters if they are not there yet; returns their record."""
    if config.signals.clusters.count is None:
        classes.run(config)
    stage, snapshot, wanted = stage_of(config)
    if wanted.count > snapshot["rows"]:
        raise ValueError(
            f"{wanted.count} clusters (signals.clusters.count, by default signals.classes): the "
            f"pool has {snapshot['rows']} images; set it lower"
        )
    return write(config, stage, snapshot, wanted)


def write(
    config: Config, stage: Stage, snapshot: dict[str, Any], wanted: Clustering
) -> dict[str, Any]:
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return record
    parts, start = filled(snapshot), time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        on = cluster()
        gpu = choose_device(config.compute.device) == "cuda" and on.gpus >= 1
        facts = find_clusters(
            *(pool_table(config).parts, parts, wanted, stage.folder),
            actors=max(1, int(on.gpus if gpu else on.cpus)),
            gpus=1.0 if gpu else 0.0,
        )
    seconds = round(time.monotonic() - start, 2)
    _log.info(
        "clusters: %d of %d images in %.1f s, in %s",
        *(wanted.count, snapshot["rows"], seconds, stage.folder.uri),
    )
    return finish_signal(
        *(stage, snapshot, seconds),
        {
            "made_of": classes.made_of(config) if config.signals.clusters.count is None else [],
            **asdict(wanted),
            **facts,
        },
    )
