"""One data-parallel worker that trains a proxy on pseudo-labels and records every row it sees:
what Ray Train calls on every worker."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import ray
import torch
from torch import nn

from coreset_ray.distributed.fit import Hopeless, hopeless_where_refused
from coreset_ray.distributed.labels import read_labels
from coreset_ray.distributed.train_loop import Training, Worker
from coreset_ray.distributed.train_worker import MAX_PIXELS, image_loader
from coreset_ray.io.array_files import create_array, machine_folder
from coreset_ray.io.embedding_rows import EmbeddingRows, lay_rows
from coreset_ray.io.epoch_records import record_file, write_record
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.images import decode
from coreset_ray.io.tables import PartedTable
from coreset_ray.models.dynamics import METRICS, measure
from coreset_ray.models.image_cache import CachedImages, ImageCache
from coreset_ray.models.images import EpochBatches, OwnedBatches
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.recipe import Recipe, batch_loss


@dataclass(frozen=True)
class Recording(Training):
    """table, labels, records: folders; parts: rows of each, in the order that numbers rows;
    scratch: a folder of each machine; images: path, offset, size of every row in that order,
    None where the proxy trains on embeddings."""

    table: str
    parts: dict[str, int]
    labels: str
    records: str
    scratch: str
    images: ray.ObjectRef | None
    loader_workers: int
    open_file: Callable[[str], BinaryIO]


def work(config: dict[str, Recording]) -> dict[str, Any]:
    """One worker, from start or checkpoint to the end of the last epoch."""
    job = config["job"]
    try:
        worker = (_EmbeddingRecorder if job.images is None else _ImageRecorder)(job)
        worker.restore()
        worker.train()
        facts = {**worker.facts(), "accuracy": worker.accuracy, "writers": worker.writers}
        shutil.rmtree(worker.scratch)
        return facts
    except Hopeless as error:  # returned, as Ray Train would retry what is raised
        return {"hopeless": str(error)}


class _Recorder(Worker):
    """Records the forward pass that trains: no row is looked at twice.

    Row i belongs to worker i mod workers, which keeps its log-probabilities of the last epoch,
    (rows / workers, c) float32, in a memory-mapped file of its machine, and the epoch's metrics,
    33 bytes a row, in memory. The former are part of each checkpoint, a file a worker, so that
    what is resumed goes on as if nothing had happened, also on another machine or with another
    number of workers (whose batches then differ).
    """

    job: Recording

    def __init__(self, job: Recording) -> None:
        super().__init__(job)
        self.rows = sum(job.parts.values())
        self.label = read_labels(job.labels, job.parts, self.rank, self.world)
        with hopeless_where_refused():
            scratch = machine_folder(job.scratch)
        own = job.fingerprint[:16]  # others may train beside this one
        self.scratch = scratch / own / f"worker-{self.rank}-of-{self.world}"
        self.scratch.mkdir(parents=True, exist_ok=True)
        shape = (len(self.label), job.classes)
        self.log_p = create_array(self.scratch / "log_p.npy", np.float32, shape)
        self.metrics = {
            name: np.zeros(shape[0], bool if name == "correct" else np.float32) for name in METRICS
        }
        self.writers: list[int] = []  # how many workers recorded each epoch
        self.accuracy = math.nan

    def batches(self) -> OwnedBatches:
        where = {"worker": self.rank, "workers": self.world}
        return OwnedBatches(self.rows, self.recipe.batch_size, seed=self.job.seed, **where)

    def loss(
        self, batches: EpochBatches, step: int, logits: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        assert isinstance(batches, OwnedBatches)
        own = batches.own[step]
        before = self.move(torch.from_numpy(self.log_p[own])) if self.epoch else None
        found, log_p = measure(logits.detach(), label, before)
        columns = torch.stack([found[name].float() for name in METRICS]).cpu().numpy()
        for name, values in zip(METRICS, columns, strict=True):
            self.metrics[name][own] = values
        self.log_p[own] = log_p.cpu().numpy()
        return batch_loss(logits, label, None)

    def ended(self) -> None:
        file = record_file(locate(self.job.records), self.epoch, self.rank, self.world)
        write_record(file, np.arange(self.rank, self.rows, self.world), self.metrics)
        self.writers.append(self.world)
        right = torch.tensor(int(self.metrics["correct"].sum()), device=self.device)
        self.accuracy = self.sum(right).item() / self.rows

    def save(self, folder: Path) -> dict[str, Any]:
        if self.epoch < self.recipe.epochs:
            self.log_p.flush()
            shutil.copyfile(self.scratch / "log_p.npy", folder / _last(self.rank))
        return {"writers": self.writers, "accuracy": self.accuracy}

    def load(self, state: dict[str, Any], checkpoint: Location) -> None:
        self.writers, self.accuracy = state["writers"], state["accuracy"]
        if self.epoch < self.recipe.epochs:
            theirs = self.writers[-1]
            for worker in range(theirs):
                self._take(checkpoint / _last(worker), worker, theirs)

    def _take(self, file: Location, worker: int, workers: int) -> None:
        """What one of so many workers kept of rows that are this one's now."""
        apart = math.gcd(workers, self.world)
        shared = (i for i in range(self.world // apart) if self._mine(worker + workers * i))
        if (first := next(shared, None)) is None:
            return
        copy = self.scratch / "taken.npy"
        with file.open_stream() as source, copy.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 24)
        kept = np.load(copy, mmap_mode="r")[first :: self.world // apart]
        start = (worker + workers * first) // self.world
        self.log_p[start :: workers // apart] = kept
        copy.unlink()

    def _mine(self, row: int) -> bool:
        return row % self.world == self.rank


class _EmbeddingRecorder(_Recorder):
    """Trains on embeddings, read from a file of this machine."""

    recipe: MlpRecipe

    @cached_property
    def embedding(self) -> EmbeddingRows:
        table = PartedTable(locate(self.job.table))
        with hopeless_where_refused():
            return lay_rows(machine_folder(self.job.scratch) / "rows", table, self.job.parts)

    def build(self) -> nn.Module:
        return self.recipe.build(self.job.classes, self.embedding.mean, self.embedding.deviation)

    def loader(self, batches: EpochBatches) -> "_Rows":
        assert isinstance(batches, OwnedBatches)
        return _Rows(self.embedding.rows, self.label, batches)


@dataclass(frozen=True)
class _Rows:
    """This worker's share of each batch: embeddings (b, m) float32, labels (b,) int64."""

    rows: np.ndarray
    label: np.ndarray
    batches: OwnedBatches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for own in self.batches.own:
            given = self.rows[self.batches.row(own)].astype(np.float32, copy=False)
            yield torch.from_numpy(given), torch.from_numpy(self.label[own].astype(np.int64))


class _ImageRecorder(_Recorder):
    """Trains on images, read from their shards, decoded once if the machine's disk holds them."""

    recipe: Recipe
    cache: ImageCache | None = None

    def build(self) -> nn.Module:
        return self.recipe.build(self.job.classes)

    def train(self) -> None:
        if self.epoch < self.recipe.epochs:
            self.cache = ImageCache(self.scratch / "images", self.rows)
            super().train()

    def loader(self, batches: EpochBatches) -> Any:
        assert self.job.images is not None and self.cache is not None
        table = ray.get(self.job.images)
        label = np.zeros(self.rows, np.int64)
        label[self.rank :: self.world] = self.label
        images = CachedImages(
            table["path"].to_pylist(),
            table["offset"].to_numpy(),
            table["size"].to_numpy(),
            label,
            cache=self.cache,
            image_size=self.recipe.image_size,
            decode=partial(decode, max_pixels=MAX_PIXELS),
            transform=self.recipe.train_transform(),
            open_file=self.job.open_file,
        )
        return image_loader(
            images, self.job.loader_workers, self.device.type, batch_sampler=batches
        )

    def facts(self) -> dict[str, Any]:
        """`cached`: the share of images that were decoded once, of a call that trained."""
        if self.cache is None:
            return super().facts()
        kept = self.sum(torch.tensor(self.cache.kept(), device=self.device))
        return {**super().facts(), "cached": kept.item() / self.rows}


def _last(worker: int) -> str:
    return f"log_p-{worker}.npy"
