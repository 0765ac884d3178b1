"""shards, in the order of the embedding table → local patterns of every image."""

import logging
import time
from typing import Any

from coreset_ray.config import Config, fingerprint
from coreset_ray.distributed.embed import plan_embedding
from coreset_ray.distributed.patterns import find_patterns
from coreset_ray.distributed.session import choose_device, cluster, session
from coreset_ray.io.tables import part_name
from coreset_ray.io.workspace import Stage, Workspace
from coreset_ray.models.encoders import describe
from coreset_ray.models.spec import absolute
from coreset_ray.version import __version__
from pipelines.inputs import filled, key_of, pool_table

_log = logging.getLogger(__name__)


def stage_of(config: Config) -> tuple[Stage, dict[str, Any]]:
    """Where this configuration's patterns lie, and the snapshot they are of."""
    snapshot, told = pool_table(config).snapshot(), config.signals.patterns
    content = fingerprint([key_of(snapshot), describe(told.encoder), told.block, told.count])
    return Workspace(config.workspace).stage("signals", "patterns", content), snapshot


def run(config: Config) -> dict[str, Any]:
    """Writes the patterns if they are not there yet; returns their record."""
    stage, snapshot = stage_of(config)
    if (record := stage.done()) is not None:
        _log.info("patterns: nothing to do, %s is finished", stage.folder.uri)
        return record
    told, compute, start = config.signals.patterns, config.compute, time.monotonic()
    table, parts = pool_table(config), filled(snapshot)
    shards = {part_name(shard): shard for shard in table.shards}
    with session(compute.address):
        device = choose_device(compute.device)
        plan = plan_embedding(
            *(cluster(), device, compute.batch_size, compute.encoders, compute.encoder_gpus)
        )
        find_patterns(
            *(table.parts, {part: shards[part] for part in parts}, stage.folder),
            encoder=absolute(told.encoder),
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
    return stage.finish(
        {
            "snapshot": key_of(snapshot),
            "table": snapshot["table"],
            "parts": parts,
            "made_of": [],
            "encoder": describe(told.encoder),
            "block": told.block,
            "count": told.count,
            "device": device,
            "seconds": seconds,
            "version": __version__,
        }
    )
