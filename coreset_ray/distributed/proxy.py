"""Classifiers trained for a few epochs on labels, and what they make of every image: the columns
that uncertainty, gradients and decision boundaries are read from.

Killed at any moment and called again with the same name, it goes on from its last checkpoint to
the result that it would have had.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import ray
import torch

from coreset_ray.core.random import check_seed, draw_words
from coreset_ray.distributed.fit import Running, fit
from coreset_ray.distributed.labels import check_labels
from coreset_ray.distributed.progress import Progress
from coreset_ray.distributed.proxy_worker import ProxyJob, work
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import (
    PartedTable,
    array_of,
    list_column,
    matrix,
    read_table,
    write_table,
)
from coreset_ray.models.images import OwnedBatches
from coreset_ray.models.mlp import ProxyRecipe
from coreset_ray.models.proxy import Runs, measure_runs, runs_of


def train_proxy(
    table: PartedTable,
    parts: dict[str, int],
    labels: Location,
    out: Location,
    *,
    recipe: ProxyRecipe,
    runs: int,
    classes: int,
    seed: int,
    scratch: str,
    running: Running,
) -> dict[str, Any]:
    """Trains so many MLPs at once, keeps them in OUT/models.pt, and writes part-NAME.parquet for
    every embedding part that has none yet: uid, label (the one that was trained on), and each of
    `models.proxy.MEASURES`.

    parts: rows of each, in the order that numbers rows. labels: a folder with part-NAME.parquet
    for each, of which uid and label (0 … classes - 1) are read. Run 0 has this seed, the others
    have functions of it; a run is what it would be alone. The same seed and workers give the same
    bits on a CPU; another number of workers draws other batches.

    scratch: a folder of each machine for its copy of the embeddings.

    Returns, JSON-able: runs, classes, images, epochs, train_loss (mean over the last epoch and
    runs; none of no epochs), accuracy (of the first run, trained, on these labels), unmoved
    (images without a perturbation that changes the prediction), workers, device, precision. Raises
    `ValueError` for wrong arguments or labels before training; `RuntimeError` as training does.
    """
    check_seed(seed)
    if classes < 2 or runs < 1:
        raise ValueError(f"classes={classes}, runs={runs}: expected at least 2 and 1")
    rows = sum(parts.values())
    OwnedBatches(rows, recipe.batch_size, seed=seed, workers=running.workers)
    firsts = np.cumsum([0, *parts.values()])[:-1].tolist()
    placed = list(zip(parts, firsts, parts.values(), strict=True))
    content = check_labels(table, labels, placed, classes)
    seeds = tuple(_seed(seed, run) for run in range(runs))
    mark = json.dumps([asdict(recipe), classes, seeds, content], sort_keys=True)
    fingerprint = hashlib.sha256(mark.encode()).hexdigest()
    job = ProxyJob(
        recipe=recipe,
        classes=classes,
        seed=seed,
        fingerprint=fingerprint,
        checkpoint_every=running.checkpoint_every,
        table=table.folder.uri,
        parts=parts,
        labels=labels.uri,
        seeds=seeds,
        scratch=scratch,
        out=out.uri,
    )
    if not (out / "models.pt").exists():
        fit(work, job, running)
    with (out / "models.pt").open_file() as source:
        state = torch.load(cast(BinaryIO, source), map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise RuntimeError(
            f"{(out / 'models.pt').uri} is of other data, labels, recipe, classes or seed: delete "
            f"{out.uri}"
        )
    right, unmoved = _measure_parts(runs_of(state["models"]), table, parts, labels, out)
    told = {"accuracy": right / rows, "unmoved": unmoved, "workers": running.workers}
    return {"runs": runs, "classes": classes, "images": rows, **state["facts"], **told}


def _seed(seed: int, run: int) -> int:
    """Of a run: the seed itself, then others that are functions of it."""
    return int(draw_words(seed, run, 1, 1)[0, 0]) if run else seed


def _measure_parts(
    models: Runs, table: PartedTable, parts: dict[str, int], labels: Location, out: Location
) -> tuple[int, int]:
    """Writes the parts that are missing. Returns images whose label the first run predicts, and
    those that no perturbation moves."""
    shared = ray.put(models)
    places = [(table.part(p).uri, *((f / f"part-{p}.parquet").uri for f in (labels, out)))
              for p in parts]  # fmt: skip
    pending, total = [_measure.remote(shared, *place) for place in places], np.zeros(2, np.int64)
    with Progress("proxy", len(parts), "parts") as progress:
        while pending:
            ready, pending = ray.wait(pending)
            total += sum(ray.get(ready))
            progress.update(len(parts) - len(pending))
    right, unmoved = total.tolist()
    return right, unmoved


@ray.remote(num_cpus=1, max_retries=3)
def _measure(models: Runs, part: str, labels: str, place: str) -> np.ndarray:
    """A part, and what it adds to the counts of `_measure_parts`, (2,) int64."""
    torch.set_num_threads(1)  # how threads share a sum moves digits
    if not locate(place).exists():
        rows = read_table(locate(part), ["uid", "embedding"])
        label = read_table(locate(labels), ["label"])["label"]
        found = measure_runs(models, matrix(rows["embedding"]), label.to_numpy())
        columns = {n: pa.array(v) if v.ndim == 1 else list_column(v) for n, v in found.items()}
        told = {"uid": rows["uid"], "label": label.cast(pa.int32()), **columns}
        write_table(locate(place), pa.table(told))
    own = read_table(locate(place), ["label", "probability", "perturbation"])
    right = array_of(own["probability"]).argmax(1) == own["label"].to_numpy()
    return np.array([right.sum(), np.isinf(own["perturbation"].to_numpy()).sum()])
