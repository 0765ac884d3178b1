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
from coreset_ray.distributed.fit import fit
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
    name: str,
    storage_path: str,
    workers: int = 1,
    use_gpu: bool = False,
    loader_workers: int = 0,
    max_failures: int = 3,
    checkpoint_every: int = 10,
    open_file: Callable[[str], BinaryIO] | None = None,
) -> dict[str, Any]:
    """Train the recipe's model on `train` from scratch and test it on `test` at the end.

    Source: BlindCS section 6.1. Tables: path (string), offset and size (int64, bytes of the
    image inside that file), label (integer in 0 … classes - 1) and, where recipe.weighted,
    weight (float).

    The same seed and workers give the same result on a CPU. Another number of workers sees the
    same batches and takes the same mean gradient, but batch normalisation sees each worker's
    share. Every test image counts once.

    name, storage_path: where checkpoints go (a local path shared by all nodes, or a URI). A
    call with a name that has been there resumes it; one that finished is tested again.
    loader_workers: processes that decode images, per worker; 0 decodes in the worker itself.
    checkpoint_every: epochs. open_file: path → seekable binary file, by default any URI that
    pyarrow knows; sent to the workers.

    Returns, JSON-able: accuracy (of the test images, in [0, 1]), train_loss (mean over the last
    epoch), epochs, images, test_images, seconds (of this call), workers, device, precision.
    Raises `ValueError` for wrong arguments or tables before Ray is touched; `RuntimeError` for a
    loss that is not finite, for a name that belongs to other training, and after max_failures.
    """
    started = time.perf_counter()
    _check_table(train, "train", classes, bool(recipe.weighted))
    _check_table(test, "test", classes, weighted=False)
    check_run(seed, name, workers, loader_workers, checkpoint_every)
    EpochBatches(1, recipe.batch_size, seed=seed, workers=workers)
    columns = [*_COLUMNS, "weight"] if recipe.weighted else [*_COLUMNS]
    train = train.select(columns)
    job = Job(
        recipe=recipe,
        classes=classes,
        seed=seed,
        train=ray.put(train),
        test=ray.put(test.select(_COLUMNS)),
        fingerprint=_fingerprint(train, recipe, classes, seed),
        loader_workers=loader_workers,
        checkpoint_every=checkpoint_every,
        open_file=open_file or open_any,
    )
    outcome = fit(
        work,
        job,
        name=name,
        storage_path=storage_path,
        workers=workers,
        use_gpu=use_gpu,
        max_failures=max_failures,
    )
    seconds = time.perf_counter() - started
    return {**outcome, "images": len(train), "seconds": round(seconds, 3), "workers": workers}


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


def check_run(
    seed: int, name: str, workers: int, loader_workers: int, checkpoint_every: int
) -> None:
    """`ValueError` for a number out of range, or a name that is no folder's."""
    check_seed(seed)
    if not name or "/" in name:
        raise ValueError(f"name={name!r}: expected a folder name without a slash")
    if workers < 1 or loader_workers < 0 or checkpoint_every < 1:
        raise ValueError(
            f"workers={workers}, loader_workers={loader_workers}, checkpoint_every="
            f"{checkpoint_every}: expected at least 1, 0 and 1"
        )


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
