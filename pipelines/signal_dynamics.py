"""pseudo-labels → what a classifier does with every image while it learns them."""

import logging
import time
from typing import Any

import pyarrow as pa

from coreset_ray.config import Config
from coreset_ray.distributed.dynamics import record_dynamics
from coreset_ray.distributed.export import locate_members
from coreset_ray.io.tables import read_table
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from pipelines import signal_pseudo_labels
from pipelines.inputs import (
    filled,
    finish_signal,
    key_of,
    nothing_to_do,
    on_cluster,
    pool_table,
    scratch_of,
    workspace_of,
)
from pipelines.trainings import running, training_mark

_log = logging.getLogger(__name__)


def before(config: Config) -> tuple[str, ...]:
    """The signals that this configuration's are made of."""
    return ("pseudo_labels",)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any], dict[str, Any]]:
    """Where this configuration's dynamics lie, the snapshot they are of, and the record of the
    pseudo-labels, with their folder."""
    snapshot = pool_table(config).snapshot()
    stage, labels = signal_pseudo_labels.finished(config)
    told = config.signals.dynamics
    content = training_mark(config, [stage.name, told.proxy, told.recipe(), config.signals.seed])
    found = workspace_of(config).stage("signals", "dynamics", content)
    return found, snapshot, labels | {"folder": stage.folder}


@as_stage("dynamics")
def run(config: Config) -> dict[str, Any]:
    """Writes the dynamics, and the pseudo-labels before them, if they are not there yet; returns
    their record."""
    signal_pseudo_labels.run(config)
    stage, snapshot, labels = stage_of(config)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return record
    told, parts, start = config.signals.dynamics, filled(snapshot), time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        facts = record_dynamics(
            *(pool_table(config).parts, parts, labels["folder"], stage.folder),
            proxy=told.recipe(),
            classes=labels["classes"],
            seed=config.signals.seed,
            scratch=scratch_of(config, f"{key_of(snapshot)}-rows"),
            running=running(config, stage.folder, "dynamics", checkpoint_every=5),
            images=None if told.proxy == "mlp" else _images(config, list(parts)),
        )
    seconds = round(time.monotonic() - start, 2)
    _log.info(
        "dynamics: %d epochs of %s on %d images in %.1f s, accuracy %.3f on pseudo-labels, in %s",
        *(facts["epochs"], told.proxy, snapshot["rows"], seconds, facts["accuracy"]),
        stage.folder.uri,
    )
    return finish_signal(
        *(stage, snapshot, seconds),
        {
            "made_of": [labels["folder"].path.rsplit("/", 1)[1]],
            **facts,
            "proxy": told.proxy,
            "recipe": vars(told.recipe()),
        },
    )


def _images(config: Config, parts: list[str]) -> pa.Table:
    """Where every image of the pool lies: uid, path, offset, size."""
    table, columns = pool_table(config), ["uid", "shard", "key"]
    wanted = pa.concat_tables([read_table(table.parts.part(p), columns) for p in parts])
    found = locate_members({s.name: s for s in table.shards}, wanted)
    return found.filter(found["image"]).select(["uid", "path", "offset", "size"])
