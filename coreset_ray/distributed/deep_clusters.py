"""Pseudo-labels of a pool by deep clustering: heads trained with Ray Train, labels part by part.

Killed at any moment and called again with the same name, it goes on from its last checkpoint to
the result that it would have had.
"""

import hashlib
import json
import os
from dataclasses import asdict, replace
from typing import Any, BinaryIO, cast

import pyarrow as pa
import ray
import torch

from coreset_ray.clustering.deep import HeadSettings
from coreset_ray.clustering.labeler import Labeler, labeler_of
from coreset_ray.core.random import draw_words
from coreset_ray.distributed.deep_worker import HeadJob, work
from coreset_ray.distributed.fit import Running, fit
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.tables import PartedTable, matrix, read_table, write_table
from coreset_ray.models.images import EpochBatches

_ATTEMPTS = 3  # seeds, where all heads collapse


def train_heads(
    table: PartedTable,
    parts: dict[str, int],
    neighbors: Location,
    settings: HeadSettings,
    out: Location,
    *,
    scratch: str,
    running: Running,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Trains heads on a pool and its neighbours, keeps them in OUT/heads.pt, and writes a part of
    labels for every embedding part that has none yet: uid, label, confidence, agreement.

    Source: Adaloglou et al. 2023; ELFS section 4.2. Ours differs in that heads are matched before
    their mean is taken, and that collapsed heads are left out of it.

    parts: rows of each, in the order that numbers rows; neighbors: folder of the k-NN signal.
    scratch: a folder of each machine for this pool and these neighbours, where both are laid out.
    stop_after: epochs after which to stop for now, before any labels.

    Pairs depend on (seed, epoch, row) alone. The same seed and workers give the same heads on a
    CPU; another number of workers adds gradients in another order, which moves last digits, and
    these grow over many epochs.

    Returns, JSON-able: loss of each head (mean over the last epoch), best_head, collapsed (heads),
    largest_share (of a cluster in each head's probability), rows_of_label, attempts, seed, epochs,
    device, precision, workers.
    Raises `ValueError` for wrong arguments before Ray is touched; `RuntimeError` for a loss that
    is not finite, for a name that belongs to other training, after max_failures, and where all
    heads put everything into one cluster with each of three seeds.
    """
    _check(settings, parts, running.workers, stop_after)
    fingerprint = _fingerprint(settings, parts, neighbors)
    if not (out / "heads.pt").exists():
        for tried in range(_ATTEMPTS):
            job = HeadJob(
                table=table.folder.uri,
                parts=parts,
                neighbors=neighbors.uri,
                settings=replace(settings, seed=_seed(settings.seed, tried)),
                scratch=scratch,
                out=out.uri,
                epochs=min(settings.epochs, stop_after or settings.epochs),
                checkpoint_every=running.checkpoint_every,
                fingerprint=fingerprint,
            )
            facts = fit(work, job, replace(running, name=f"{running.name}-{tried}"))
            if facts["epochs"] < settings.epochs:
                return facts
            if facts["written"]:
                break
        else:
            raise RuntimeError(
                f"training {running.name!r}: with each of {_ATTEMPTS} seeds all {settings.heads} "
                "heads put everything into one cluster "
                f"({facts['largest_share'][0]:.1%} in the first head); " + _remedy(settings)
            )
    state = _load(out)
    if state["fingerprint"] != fingerprint:
        raise RuntimeError(
            f"{(out / 'heads.pt').uri} was trained on other data or settings; delete that folder"
        )
    _label_parts(labeler_of(state), table, parts, out, gpus=float(running.use_gpu))
    seed = state["settings"]["seed"]
    attempts = [_seed(settings.seed, tried) for tried in range(_ATTEMPTS)].index(seed) + 1
    return {**state["facts"], "seed": seed, "attempts": attempts, "workers": running.workers}


def load_labeler(out: Location) -> Labeler:
    """The heads that `train_heads` left in its folder: they label any embeddings of its encoder."""
    return labeler_of(_load(out))


def _load(out: Location) -> dict[str, Any]:
    with (out / "heads.pt").open_file() as source:
        return torch.load(cast(BinaryIO, source), map_location="cpu", weights_only=True)


def _check(
    settings: HeadSettings,
    parts: dict[str, int],
    workers: int,
    stop_after: int | None,
) -> None:
    rows = sum(parts.values())
    if settings.classes > rows:
        raise ValueError(f"classes={settings.classes}: the pool has {rows} images; set it lower")
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"stop_after={stop_after}: expected at least 1")
    if settings.batch_size < 2 * workers:
        EpochBatches(1, settings.batch_size, seed=0, workers=workers)  # says what is wrong


def _fingerprint(settings: HeadSettings, parts: dict[str, int], neighbors: Location) -> str:
    """A hash of what determines the heads; not of where the tables are mounted."""
    told = [asdict(settings), list(parts.items()), os.path.basename(neighbors.path)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _seed(seed: int, tried: int) -> int:
    """Of an attempt: the seed itself, then others that are functions of it."""
    return int(draw_words(seed, 0, 1, _ATTEMPTS)[0, tried]) if tried else seed


def _remedy(settings: HeadSettings) -> str:
    if settings.clustering == "scan":
        return f"raise entropy_weight={settings.entropy_weight} or lower lr={settings.lr:.4g}"
    return (
        f"lower lr={settings.lr:.4g} or beta={settings.beta}, raise warmup_epochs="
        f"{settings.warmup_epochs}, and see whether the embeddings differ from image to image"
    )


def _label_parts(
    labeler: Labeler, table: PartedTable, parts: dict[str, int], out: Location, *, gpus: float
) -> None:
    places = {part: out / f"part-{part}.parquet" for part in parts}
    left = [part for part, place in places.items() if not place.exists()]
    if not left:
        return
    shared, label = ray.put(labeler), _label.options(num_gpus=gpus)
    pending = [
        label.remote(shared, table.part(part).uri, places[part].uri, gpus > 0) for part in left
    ]
    with Progress("pseudo-labels", len(parts), "parts") as progress:
        while pending:
            ready, pending = ray.wait(pending)
            ray.get(ready)
            progress.update(len(parts) - len(pending))


@ray.remote(num_cpus=1)
def _label(labeler: Labeler, part: str, place: str, gpu: bool) -> None:
    """A part: uid, label, confidence and agreement."""
    torch.set_num_threads(1)  # how threads share a sum moves digits
    rows = read_table(locate(part), ["uid", "embedding"])
    found = labeler.label(matrix(rows["embedding"]), "cuda" if gpu else "cpu")
    names = "label", "confidence", "agreement"
    columns = {name: pa.array(values) for name, values in zip(names, found, strict=True)}
    write_table(locate(place), pa.table({"uid": rows["uid"], **columns}))
