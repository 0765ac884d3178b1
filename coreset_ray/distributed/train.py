"""A classifier trained on a coreset and tested, data-parallel, with Ray Train.

Killed at any moment and called again with the same name, it goes on from its last checkpoint
to the result that it would have had: all randomness is a function of (seed, epoch, row).
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import ray
import ray.train

from coreset_ray.core.random import check_seed
from coreset_ray.distributed.fit import Running, fit
from coreset_ray.distributed.train_worker import Job, work
from coreset_ray.io.filesystem import locate
from coreset_ray.models.images import EpochBatches
from coreset_ray.models.recipe import Recipe

_COLUMNS = ("path", "offset", "size", "label")


def train_and_test(
    train: pa.Table,
    test: pa.Table,
    recipe: Recipe,
    *,
    classes: int,
    seed: int,
    running: Running,
    open_file: Callable[[str], BinaryIO] | None = None,
) -> dict[str, Any]:
    """Train the recipe's model on `train` from scratch and test it on `test` at the end.

    Source: BlindCS section 6.1. Tables: path (string), offset and size (int64, bytes of the
    image inside that file), label (integer in 0 … classes - 1) and, where recipe.weighted,
    weight (float).

    The same seed and workers give the same result on a CPU. Another number of workers sees the
    same batches and takes the same mean gradient, but batch normalisation sees each worker's
    share. Every test image counts once.

    One that finished is tested again. open_file: path → seekable binary file, by default any URI
    that pyarrow knows; sent to the workers.

    Returns, JSON-able: accuracy (of the test images, in [0, 1]), train_loss (mean over the last
    epoch), epochs, images, test_images, seconds (of this call), workers, device, precision.
    Raises `ValueError` for wrong arguments or tables before Ray is touched; `RuntimeError` for a
    loss that is not finite, for a name that belongs to other training, and after max_failures.
    """
    started = time.perf_counter()
    _check_table(train, "train", classes, bool(recipe.weighted))
    _check_table(test, "test", classes, weighted=False)
    check_seed(seed)
    EpochBatches(1, recipe.batch_size, seed=seed, workers=running.workers)
    columns = [*_COLUMNS, "weight"] if recipe.weighted else [*_COLUMNS]
    train = train.select(columns)
    job = Job(
        recipe=recipe,
        classes=classes,
        seed=seed,
        train=ray.put(train),
        test=ray.put(test.select(_COLUMNS)),
        fingerprint=_fingerprint(train, recipe, classes, seed),
        loader_workers=running.loader_workers,
        checkpoint_every=running.checkpoint_every,
        open_file=open_file or open_any,
    )
    outcome = fit(work, job, running)
    seconds = round(time.perf_counter() - started, 3)
    return {**outcome, "images": len(train), "seconds": seconds, "workers": running.workers}


def _check_table(table: pa.Table, which: str, classes: int, weighted: bool) -> None:
    for column in (*_COLUMNS, "weight") if weighted else _COLUMNS:
        if column not in table.column_names:
            have = ", ".join(table.column_names)
            raise ValueError(f"the {which} table has no column {column!r}; it has {have}")
        if table[column].null_count:
            raise ValueError(f"the {which} table's {column} has nulls; drop those rows first")
    if len(table) == 0:
        raise ValueError(f"the {which} table has no rows; give it at least one image")
    label = table["label"].to_numpy()
    wrong = label[(label < 0) | (label >= classes)]
    if len(wrong):
        raise ValueError(
            f"the {which} table has label {wrong[0]} ({len(wrong)} such rows) with "
            f"classes={classes}; labels go from 0 to classes - 1: correct them or raise classes"
        )
    if weighted:
        weight = table["weight"].to_numpy()
        wrong = weight[~(np.isfinite(weight) & (weight >= 0))]
        if len(wrong):
            raise ValueError(f"the {which} table has weight {wrong[0]}; expected finite, from 0 up")


def _fingerprint(train: pa.Table, recipe: Recipe, classes: int, seed: int) -> str:
    """A hash of what determines the trained model; not of where the shards are mounted."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), classes, seed], sort_keys=True).encode())
    for column in train.column_names:
        if column != "path":
            digest.update(np.ascontiguousarray(train[column].to_numpy()).tobytes())
    return digest.hexdigest()


def open_any(uri: str) -> BinaryIO:
    """A file anywhere, for reading at any offset."""
    return locate(uri).open_file()
