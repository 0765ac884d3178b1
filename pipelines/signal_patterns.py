"""shards, in the order of the embedding table → local patterns of every image."""

import logging
import time
from typing import Any

from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.embed import plan_embedding
from coreset_ray.distributed.patterns import find_patterns
from coreset_ray.distributed.session import choose_device, cluster, session
from coreset_ray.io.tables import part_name
from coreset_ray.io.workspace import Stage
from coreset_ray.telemetry.run import as_stage
from pipelines.inputs import (
    describe_encoder,
    encoder_of,
    filled,
    finish_signal,
    key_of,
    nothing_to_do,
    pool_table,
    workspace_of,
)

_log = logging.getLogger(__name__)


def before(config: Config) -> tuple[str, ...]:
    """The signals that this configuration's are made of."""
    return ()


def stage_of(config: Config) -> tuple[Stage, dict[str, Any]]:
    """Where this configuration's patterns lie, and the snapshot they are of."""
    snapshot, told = pool_table(config).snapshot(), config.signals.patterns
    content = fingerprint(
        [key_of(snapshot), describe_encoder(config, told.encoder), told.block, told.count]
    )
    return workspace_of(config).stage("signals", "patterns", content), snapshot


@as_stage("patterns")
def run(config: Config) -> dict[str, Any]:
    """Writes the patterns if they are not there yet; returns their record."""
    stage, snapshot = stage_of(config)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return record
    told, compute, start = config.signals.patterns, config.compute, time.monotonic()
    table, parts = pool_table(config), filled(snapshot)
    shards = {part_name(shard): shard for shard in table.shards}
    with session(compute.address, compute.wait_for):
        device = choose_device(compute.device)
        plan = plan_embedding(
            *(cluster(), device, compute.batch_size, compute.encoders, compute.encoder_gpus)
        )
        find_patterns(
            *(table.parts, {part: shards[part] for part in parts}, stage.folder),
            encoder=encoder_of(config, told.encoder),
            block=told.block,
            count=told.count,
            max_pixels=config.embed.max_pixels,
            plan=plan,
        )
    seconds = round(time.monotonic() - start, 2)
    _log.info(
        "patterns: %d of each of %d images in %.1f s, in %s",
        *(told.count, snapshot["rows"], seconds, stage.folder.uri),
    )
    return finish_signal(
        *(stage, snapshot, seconds),
        {
            "made_of": [],
            "encoder": describe_encoder(config, told.encoder),
            "block": told.block,
            "count": told.count,
            "device": device,
        },
    )
