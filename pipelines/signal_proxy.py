"""labels → what classifiers make of every image after a few epochs."""

import logging
import time
from typing import Any

from coreset_ray.config import Config
from coreset_ray.distributed.proxy import train_proxy
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
    """Where what this configuration's classifiers say lies, the snapshot it is of, and the record
    of the labels, with their folder."""
    snapshot = pool_table(config).snapshot()
    stage, labels = signal_pseudo_labels.finished(config)
    told = config.signals.proxy
    content = training_mark(config, [stage.name, told.runs, told.recipe(), config.signals.seed])
    found = workspace_of(config).stage("signals", "proxy", content)
    return found, snapshot, labels | {"folder": stage.folder}


@as_stage("proxy")
def run(config: Config) -> dict[str, Any]:
    """Writes it, and the labels before it, if it is not there yet; returns its record."""
    signal_pseudo_labels.run(config)
    stage, snapshot, labels = stage_of(config)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return record
    told, parts, start = config.signals.proxy, filled(snapshot), time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        facts = train_proxy(
            *(pool_table(config).parts, parts, labels["folder"], stage.folder),
            recipe=told.recipe(),
            runs=told.runs,
            classes=labels["classes"],
            seed=config.signals.seed,
            scratch=scratch_of(config, f"{key_of(snapshot)}-rows"),
            running=running(config, stage.folder, "proxy", checkpoint_every=5),
        )
    seconds = round(time.monotonic() - start, 2)
    _log.info(
        "proxy: %d runs of %d epochs on %d images in %.1f s, accuracy %.3f on their labels, in %s",
        *(told.runs, facts["epochs"], snapshot["rows"], seconds, facts["accuracy"]),
        stage.folder.uri,
    )
    return finish_signal(
        *(stage, snapshot, seconds),
        {
            "made_of": [labels["folder"].path.rsplit("/", 1)[1]],
            **facts,
            "recipe": vars(told.recipe()),
        },
    )
