"""shards → an encoder that has learned from them by itself. No label is read."""

import logging
import time
from typing import Any

import pyarrow as pa

from coreset_ray.config import Config
from coreset_ray.distributed.find_images import find_images
from coreset_ray.distributed.pretrain import pretrain_encoder
from coreset_ray.io.tables import read_table, write_table
from coreset_ray.io.workspace import Stage
from coreset_ray.models.self_supervised import check_library
from coreset_ray.models.spec import absolute
from coreset_ray.telemetry.run import as_stage
from coreset_ray.version import __version__
from pipelines.inputs import (
    WEIGHTS,
    nothing_to_do,
    on_cluster,
    pretrain_shards,
    pretrain_stage,
    scratch_of,
    workspace_of,
)
from pipelines.trainings import running

_log = logging.getLogger(__name__)


@as_stage("pretrain")
def run(config: Config) -> dict[str, Any]:
    """Trains the encoder that has `weights: pretrained` if it is not trained yet; returns its
    record."""
    stage = pretrain_stage(config)
    if (record := stage.done()) is not None:
        nothing_to_do(stage)
        return record
    own, told = config.embed.own(), config.pretrain
    assert own is not None and told is not None, "pretrain_stage refuses others"
    check_library()
    _warn_of_another(config)
    start = time.monotonic()
    with on_cluster(config, config.compute.wait_for):
        how = running(config, stage.folder, "pretrain")
        images = _images(config, stage)
        facts = pretrain_encoder(
            *(images, absolute(own), told.recipe(), stage.folder / WEIGHTS),
            seed=told.seed,
            max_pixels=config.embed.max_pixels,
            scratch=scratch_of(config, "pretrain"),
            running=how,
        )
    seconds = round(time.monotonic() - start, 2)
    _log.info(
        "pretrain: %d epochs of %s on %d images in %.1f s, loss %.4f, in %s",
        *(facts["epochs"], told.method, len(images), seconds, facts["train_loss"]),
        stage.folder.uri,
    )
    return stage.finish(
        {
            **_told(config),
            "shards": [shard.name for shard in pretrain_shards(config)],
            **facts,
            "seconds": seconds,
            "version": __version__,
        }
    )


def _told(config: Config) -> dict[str, Any]:
    """The encoder and how it is trained, but for what on."""
    own, told = config.embed.own(), config.pretrain
    assert own is not None and told is not None, "pretrain_stage refuses others"
    how = {"method": told.method, "params": vars(told.recipe()), "seed": told.seed}
    return {"encoder": own.name, "input_size": own.input_size, **how}


def _warn_of_another(config: Config) -> None:
    """A pool that has grown makes for another encoder, and that for other embeddings."""
    folder, told = workspace_of(config).root / "encoders", _told(config)
    for info in folder.listing():
        record = Stage(folder / info.base_name).done()
        if record is not None and told.items() <= record.items():
            _log.warning(
                "pretrain: %s was trained alike on %d shards that are not these: another encoder "
                "is trained, and the whole pool embedded anew. To keep it, name its shards in "
                "pretrain.pool",
                *(info.base_name, len(record["shards"])),
            )


def _images(config: Config, stage: Stage) -> pa.Table:
    """Where the images lie that take part, found once. `RuntimeError` where more than
    embed.max_bad of the samples hold none."""
    place = stage.folder / "images.parquet"
    if place.exists():
        return read_table(place)
    images, bad = find_images(pretrain_shards(config), config.embed.max_pixels)
    limit = config.embed.max_bad
    if bad and len(bad) > limit * (len(images) + len(bad)):
        raise RuntimeError(
            f"{len(bad)} of {len(images) + len(bad)} samples and shards are unusable, more than "
            f"embed.max_bad = {limit}; the first: {bad[0]}. Mend the pool, or raise embed.max_bad "
            "to train without them"
        )
    if bad:
        _log.warning("pretrain: %d samples are left out; the first: %s", len(bad), bad[0])
    write_table(place, images)
    return images


if __name__ == "__main__":
    import sys

    from coreset_ray.cli import main

    main(["pretrain", *sys.argv[1:]])
