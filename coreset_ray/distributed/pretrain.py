"""An encoder trained by self-supervision on images of the pool, data-parallel, with Ray Train.

Killed at any moment and called again with the same name, it goes on from its last checkpoint to the
weights that it would have had: all randomness is a function of (seed, epoch, row).
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.random import check_seed
from coreset_ray.distributed.fit import Running, fit
from coreset_ray.distributed.pretrain_worker import Pretraining, work
from coreset_ray.distributed.train import open_any
from coreset_ray.io.filesystem import Location
from coreset_ray.models.full_batches import FullBatches
from coreset_ray.models.pretrain import PretrainRecipe
from coreset_ray.models.self_supervised import check_library
from coreset_ray.models.spec import EncoderSpec

_log = logging.getLogger(__name__)


def pretrain_encoder(
    images: pa.Table,
    encoder: EncoderSpec,
    recipe: PretrainRecipe,
    out: Location,
    *,
    seed: int,
    max_pixels: int,
    scratch: str,
    running: Running,
    open_file: Callable[[str], BinaryIO] | None = None,
) -> dict[str, Any]:
    """Writes `out`, a .safetensors file that holds the encoder's weights, without a classifier.

    images: columns path (string), offset and size (int64, bytes of the image inside that file);
    all of them decode. encoder: its weights are not read. Methods: `models.self_supervised`.

    The same seed and workers give the same bits on a CPU; another number of workers draws other
    batches. Row i belongs to worker i mod workers. The images of a batch that would not be full
    are left out of that epoch.

    scratch: a folder of each machine for decoded images (3 bytes a pixel, shrunk; those that would
    leave less than a tenth of the disk free are decoded each epoch, with a warning). open_file: as
    in `train_and_test`.

    Returns, JSON-able: losses (mean of each epoch), train_loss (the last one), epochs, images,
    seconds (of this call), workers, device, precision. Raises `ValueError` for wrong arguments,
    before Ray is touched; `RuntimeError` as `train_and_test` does.
    """
    started = time.perf_counter()
    check_seed(seed)
    check_library()
    if len(images) == 0:
        raise ValueError("there is no image to train on")
    FullBatches(len(images), recipe.batch_size, seed=seed, workers=running.workers)
    job = Pretraining(
        recipe=recipe,
        classes=0,
        seed=seed,
        fingerprint=_fingerprint(images, encoder, recipe, seed),
        checkpoint_every=running.checkpoint_every,
        encoder=encoder,
        images=ray.put(images.select(["path", "offset", "size"])),
        rows=len(images),
        max_pixels=max_pixels,
        scratch=scratch,
        weights=out.uri,
        loader_workers=running.loader_workers,
        open_file=open_file or open_any,
    )
    outcome = fit(work, job, running)
    if not outcome.pop("cached", True):
        _log.warning("pretrain: not all images had room in %s; give a larger disk", scratch)
    seconds = round(time.perf_counter() - started, 3)
    return {**outcome, "images": len(images), "seconds": seconds, "workers": running.workers}


def _fingerprint(images: pa.Table, encoder: EncoderSpec, recipe: PretrainRecipe, seed: int) -> str:
    """A hash of what determines the weights; not of where the shards are mounted."""
    mark = [encoder.name, encoder.input_size, type(recipe).__name__, asdict(recipe), seed]
    digest = hashlib.sha256(json.dumps(mark, sort_keys=True).encode())
    for column in ("offset", "size"):
        digest.update(np.ascontiguousarray(images[column].to_numpy()).tobytes())
    return digest.hexdigest()
