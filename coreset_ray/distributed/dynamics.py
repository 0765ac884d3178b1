"""A proxy classifier trained on pseudo-labels with Ray Train, every image's margin, correctness,
error, loss … recorded in each epoch as it trains, and laid out a row an image."""

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
from coreset_ray.distributed.dynamics_worker import Recording, work
from coreset_ray.distributed.fit import Running, fit
from coreset_ray.distributed.labels import check_labels
from coreset_ray.distributed.pivot import pivot
from coreset_ray.distributed.train import open_any
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import PartedTable, read_table
from coreset_ray.models.images import OwnedBatches
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.recipe import Recipe

_log = logging.getLogger(__name__)


def record_dynamics(
    table: PartedTable,
    parts: dict[str, int],
    labels: Location,
    out: Location,
    *,
    proxy: MlpRecipe | Recipe,
    classes: int,
    seed: int,
    scratch: str,
    running: Running,
    images: pa.Table | None = None,
    open_file: Callable[[str], BinaryIO] | None = None,
) -> dict[str, Any]:
    """Writes part-NAME.parquet for every embedding part that has none yet: `uid`, and each of
    `models.dynamics.METRICS` as a list over epochs.

    parts: rows of each, in the order that numbers rows. labels: a folder with part-NAME.parquet
    for each, of which uid and label (0 … classes - 1) are read. proxy: an MLP on the embeddings,
    or a ResNet on `images`: a table of uid, path, offset and size (in bytes of the image inside
    that file) that holds every image of the pool, in any order.

    Every row is recorded exactly once an epoch, from the forward pass that trains on it: of an
    image, as its augmentation was. Row i belongs to worker i mod workers, which keeps the row's
    log-probabilities of one epoch for `change` in the next: n·c·4 bytes of disk over all
    workers, and as much in each checkpoint. The same seed and workers give the same bits on a
    CPU; another number of workers draws other batches.

    scratch: a folder of each machine, for these and for its copy of the embeddings or of the
    decoded images (3 bytes a pixel; those that would leave less than a tenth of the disk free are
    decoded each epoch, with a warning, and `cached` is below 1). out: seen by all nodes;
    out/records holds the epochs until all parts are written. open_file: as in `train_and_test`.

    Returns, JSON-able: proxy, classes, epochs, train_loss and accuracy (on the pseudo-labels,
    over the last epoch), images, seconds (of this call), workers, device, precision. Raises
    `ValueError` for wrong arguments or labels before training; `RuntimeError` as training does.
    """
    started = time.perf_counter()
    check_seed(seed)
    _check_proxy(proxy, classes, images)
    rows = sum(parts.values())
    OwnedBatches(rows, proxy.batch_size, seed=seed, workers=running.workers)
    firsts = np.cumsum([0, *parts.values()])[:-1].tolist()
    placed = list(zip(parts, firsts, parts.values(), strict=True))
    content = check_labels(table, labels, placed, classes)
    mark = [type(proxy).__name__, asdict(proxy), classes, seed, content]
    fingerprint = hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()
    job = Recording(
        recipe=proxy,
        classes=classes,
        seed=seed,
        fingerprint=fingerprint,
        checkpoint_every=running.checkpoint_every,
        table=table.folder.uri,
        parts=parts,
        labels=labels.uri,
        records=(out / "records").uri,
        scratch=scratch,
        images=None if images is None else ray.put(_in_order(images, table, parts)),
        loader_workers=running.loader_workers,
        open_file=open_file or open_any,
    )
    trained = out / "training.json"
    if not trained.exists():
        outcome = fit(work, job, running)
        if outcome.get("cached", 1) < 1:
            _log.warning(
                "dynamics: %.1f%% of the images had no room in %s and were decoded each epoch; "
                "give a larger disk",
                *(100 * (1 - outcome["cached"]), scratch),
            )
        trained.write_json({**outcome, "workers": running.workers, "fingerprint": fingerprint})
    facts = trained.read_json()
    if facts.pop("fingerprint") != fingerprint:
        raise RuntimeError(
            f"{trained.uri} is of other data, labels, proxy, classes or seed: delete {out.uri}"
        )
    checkpoints = locate(running.storage_path) / running.name
    pivot(labels, out, placed, facts.pop("writers"), str(checkpoints))
    kind = "mlp" if isinstance(proxy, MlpRecipe) else proxy.model
    seconds = round(time.perf_counter() - started, 3)
    return {"proxy": kind, "classes": classes, "images": rows, **facts, "seconds": seconds}


def _check_proxy(proxy: MlpRecipe | Recipe, classes: int, images: pa.Table | None) -> None:
    if classes < 2:
        raise ValueError(f"classes={classes}: expected at least 2")
    if isinstance(proxy, MlpRecipe) != (images is None):
        raise ValueError("an MLP trains on embeddings: give `images` for a ResNet, and only then")
    if isinstance(proxy, Recipe) and proxy.weighted:
        raise ValueError("weighted=True: the proxy trains on all images alike; set it to False")


def _in_order(images: pa.Table, table: PartedTable, parts: dict[str, int]) -> pa.Table:
    """path, offset and size of every row of the pool."""
    columns = ["uid", "path", "offset", "size"]
    missing = [c for c in columns if c not in images.column_names]
    if missing:
        have = ", ".join(images.column_names)
        raise ValueError(f"the table of images has no column {missing[0]!r}; it has {have}")
    number = {uid: i for i, uid in enumerate(images["uid"].to_pylist())}
    pool = [u for part in parts for u in read_table(table.part(part), ["uid"])["uid"].to_pylist()]
    if absent := [uid for uid in pool if uid not in number]:
        raise ValueError(
            f"the table of images lacks {len(absent)} of the pool's {len(pool)} (uid {absent[0]} "
            "first): locate every image of the pool"
        )
    place = pa.array([number[uid] for uid in pool])
    return images.select(columns[1:]).take(place).combine_chunks()
