"""One data-parallel worker of a training run: what Ray Train calls on every worker."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from coreset_ray.io.images import decode
from coreset_ray.models.images import EpochBatches, IndexedImages
from coreset_ray.models.recipe import Recipe, batch_loss

logger = logging.getLogger(__name__)

_MAX_PIXELS = 200_000_000
_CHECKPOINT = "state.pt"


class _Hopeless(Exception):
    """What no retry would mend; raised by all workers at the same point."""


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; the tables stay in the object store."""

    recipe: Recipe
    classes: int
    seed: int
    train: ray.ObjectRef
    test: ray.ObjectRef
    fingerprint: str
    loader_workers: int
    checkpoint_every: int
    open_file: Callable[[str], BinaryIO]


def work(config: dict[str, Job]) -> dict[str, Any]:
    """One worker, from start or checkpoint to the tested model."""
    try:
        worker = _Worker(config["job"])
        worker.restore()
        worker.train()
        return worker.test()
    except _Hopeless as error:  # returned, as Ray Train would retry what is raised
        return {"hopeless": str(error)}


class _Worker:
    """Model, optimiser and progress of one data-parallel worker."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.job, self.recipe = job, job.recipe
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        self.dtype = job.recipe.dtype(self.device)
        torch.manual_seed(job.seed)
        self.model = job.recipe.build(job.classes)
        self.parallel = prepare_model(self.model)  # moves self.model, wraps it where world > 1
        self.optimizer = job.recipe.optimizer(self.model)
        self.scaler = torch.amp.GradScaler(enabled=self.dtype == torch.float16)
        self.epoch, self.train_loss = 0, float("nan")

    def restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            path = os.path.join(folder, _CHECKPOINT)
            state = torch.load(path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.job.fingerprint:
            raise _Hopeless(
                "its folder holds a checkpoint of other data, recipe, classes or seed; "
                "choose another name or delete that folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.train_loss = state["epoch"], state["train_loss"]
        logger.info("resumed after epoch %d of %d", self.epoch, self.recipe.epochs)

    def train(self) -> None:
        table = ray.get(self.job.train)
        images = self._images(table, self.recipe.train_transform())
        weight = (
            torch.from_numpy(table["weight"].to_numpy().copy()) if self.recipe.weighted else None
        )
        batches = EpochBatches(
            len(images),
            self.recipe.batch_size,
            seed=self.job.seed,
            worker=self.rank,
            workers=self.world,
        )
        loader = self._loader(images, batch_sampler=batches)
        self.parallel.train()
        while self.epoch < self.recipe.epochs:
            batches.set_epoch(self.epoch)
            self.train_loss = self._train_epoch(loader, batches.batches, weight)
            self.epoch += 1
            if self.epoch % self.job.checkpoint_every == 0 or self.epoch == self.recipe.epochs:
                self._save()

    def _train_epoch(
        self, loader: DataLoader, batches: list[np.ndarray], weight: torch.Tensor | None
    ) -> float:
        """The mean loss over the epoch's rows. batches: the rows of each, over all workers."""
        first, losses = self.epoch * len(batches), []
        for step, (rows, (image, label)) in enumerate(zip(batches, loader, strict=True)):
            rate = self.recipe.learning_rate(first + step, self.recipe.epochs * len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            image, label = self._move(image), self._move(label)
            with self._autocast():
                logits = self.parallel(image)
            # Gradients are averaged over workers; shares of a last batch may differ by a row.
            share = len(label) * self.world / len(rows)
            loss = share * batch_loss(logits, label, None if weight is None else weight[rows])
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses.append(loss.detach())
        return self._epoch_loss(torch.stack(losses), batches)

    def _epoch_loss(self, losses: torch.Tensor, batches: list[np.ndarray]) -> float:
        """Checked once an epoch, together, so that no step waits and all workers stop alike."""
        per_step = (self._sum(losses.double()) / self.world).cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(per_step))
        if len(wrong):
            steps = self.recipe.epochs * len(batches)
            rate = self.recipe.learning_rate(self.epoch * len(batches) + int(wrong[0]), steps)
            raise _Hopeless(
                f"the loss was {per_step[wrong[0]]} at epoch {self.epoch}, step {wrong[0]} (both "
                f"from 0), with a learning rate of {rate:.4g}; lower lr={self.recipe.lr}"
            )
        return float(np.average(per_step, weights=[len(rows) for rows in batches]))

    def _save(self) -> None:
        metrics = {"epoch": self.epoch, "train_loss": self.train_loss}
        logger.info("epoch %d of %d: loss %.4f", self.epoch, self.recipe.epochs, self.train_loss)
        if self.rank != 0:
            ray.train.report(metrics)  # every worker must report
            return
        state = {
            **metrics,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "fingerprint": self.job.fingerprint,
        }
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, os.path.join(folder, _CHECKPOINT))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    @torch.inference_mode()
    def test(self) -> dict[str, Any]:
        """Each worker tests every world-th row; the sum of hits is exact."""
        images = self._images(ray.get(self.job.test), self.recipe.test_transform())
        if self.world > 1:  # each worker's running statistics are its own: take the first's
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        self.model.eval()
        hits = torch.zeros(2, dtype=torch.int64, device=self.device)
        rows = range(self.rank, len(images), self.world)
        for image, label in self._loader(images, sampler=rows, batch_size=self.recipe.batch_size):
            with self._autocast():
                predicted = self.model(self._move(image)).argmax(1)
            hits += torch.stack(
                [(predicted == self._move(label)).sum(), hits.new_tensor(len(label))]
            )
        right, total = self._sum(hits).tolist()
        assert total == len(images), (total, len(images))
        cuda = self.device.type == "cuda"
        device = torch.cuda.get_device_name(self.device) if cuda else self.device.type
        return {
            "accuracy": right / total,
            "train_loss": self.train_loss,
            "epochs": self.epoch,
            "test_images": total,
            "device": device,
            "precision": str(self.dtype).removeprefix("torch."),
        }

    def _images(self, table: pa.Table, transform: v2.Transform) -> IndexedImages:
        return IndexedImages(
            table["path"].to_pylist(),
            table["offset"].to_numpy(),
            table["size"].to_numpy(),
            table["label"].to_numpy(),
            decode=partial(decode, max_pixels=_MAX_PIXELS),
            transform=transform,
            open_file=self.job.open_file,
        )

    def _loader(self, images: IndexedImages, **batches: Any) -> DataLoader:
        """Loading processes start afresh and stay: a fork would inherit Ray's and S3's threads."""
        processes = self.job.loader_workers
        return DataLoader(
            images,
            num_workers=processes,
            multiprocessing_context="spawn" if processes else None,
            persistent_workers=processes > 0,
            pin_memory=self.device.type == "cuda",
            **batches,
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over workers, of a tensor that may be overwritten."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor
