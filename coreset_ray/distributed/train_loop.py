"""The training loop of one data-parallel worker, whatever it trains on."""

import contextlib
import io
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model
from torch import nn

from coreset_ray.core.random import uid_uniform
from coreset_ray.distributed.fit import Hopeless
from coreset_ray.io.filesystem import Location
from coreset_ray.models.images import EpochBatches
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.pretrain import PretrainRecipe
from coreset_ray.models.recipe import Recipe

logger = logging.getLogger(__name__)

_CHECKPOINT = "state.pt"
_DROPOUT = 0xD809  # the use of random numbers


@dataclass(frozen=True)
class Training:
    """What every worker needs to know. fingerprint: of all that determines the trained model."""

    recipe: Recipe | MlpRecipe | PretrainRecipe
    classes: int
    seed: int
    fingerprint: str
    checkpoint_every: int


class Worker(ABC):
    """Model, optimiser and progress of one data-parallel worker; a kind of training says what
    the model and its batches are."""

    def __init__(self, job: Training) -> None:
        context = ray.train.get_context()
        self.job, self.recipe = job, job.recipe
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        self.dtype = job.recipe.dtype(self.device)
        torch.manual_seed(job.seed)
        self.model = self.build()
        self.parallel = prepare_model(self.model)  # moves self.model, wraps it where world > 1
        self.optimizer = job.recipe.optimizer(self.model)
        self.scaler = torch.amp.GradScaler(enabled=self.dtype == torch.float16)
        self.epoch, self.train_loss = 0, float("nan")

    @abstractmethod
    def build(self) -> nn.Module:
        """The untrained model, its weights drawn from torch's global generator."""

    @abstractmethod
    def batches(self) -> EpochBatches:
        """The batches of an epoch."""

    @abstractmethod
    def loader(self, batches: EpochBatches) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """This worker's share of each batch, (input, label), anew each time it is iterated."""

    @abstractmethod
    def loss(
        self, batches: EpochBatches, step: int, logits: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """The loss of a share, a scalar. What looks on while the model trains does so here."""

    def ended(self) -> None:
        """Called after the last step of an epoch whose loss is finite, before its checkpoint."""
        return

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes files of this worker's own into a checkpoint, and returns what the first
        worker's state should hold beside what all kinds of training keep."""
        return {}

    def load(self, state: dict[str, Any], checkpoint: Location) -> None:
        """Takes up both."""
        return

    def restore(self) -> None:
        """Goes back to the last checkpoint, if there is one."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        folder = Location(checkpoint.filesystem, checkpoint.path)
        with (folder / _CHECKPOINT).open_stream() as stream:
            data = io.BytesIO(stream.read())
        state = torch.load(data, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.job.fingerprint:
            raise Hopeless(
                "its folder holds a checkpoint of other data, recipe, classes or seed; "
                "choose another name or delete that folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.train_loss = state["epoch"], state["train_loss"]
        self.load(state, folder)
        logger.info("resumed after epoch %d of %d", self.epoch, self.recipe.epochs)

    def train(self) -> None:
        """The epochs that are left."""
        batches = self.batches()
        loader = self.loader(batches)
        self.parallel.train()
        while self.epoch < self.recipe.epochs:
            batches.set_epoch(self.epoch)
            torch.manual_seed(_epoch_seed(self.job.seed, self.epoch, self.rank))  # for dropout
            self.train_loss = self._train_epoch(loader, batches)
            self.ended()
            self.epoch += 1
            if self.epoch % self.job.checkpoint_every == 0 or self.epoch == self.recipe.epochs:
                self._save()

    def _train_epoch(
        self, loader: Iterable[tuple[torch.Tensor, torch.Tensor]], batches: EpochBatches
    ) -> float:
        """The mean loss over the epoch's rows."""
        sizes = batches.sizes
        first, losses = self.epoch * len(sizes), []
        for step, (size, (given, label)) in enumerate(zip(sizes, loader, strict=True)):
            rate = self.recipe.learning_rate(first + step, self.recipe.epochs * len(sizes))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            given, label = self.move(given), self.move(label)
            with self.autocast():
                logits = self.parallel(given)
            # Gradients are averaged over workers; shares of a last batch may differ by a row.
            share = len(label) * self.world / size
            loss = share * self.loss(batches, step, logits, label)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses.append(loss.detach())
        return self._epoch_loss(torch.stack(losses), sizes)

    def _epoch_loss(self, losses: torch.Tensor, sizes: list[int]) -> float:
        """Checked once an epoch, together, so that no step waits and all workers stop alike."""
        per_step = (self.sum(losses.double()) / self.world).cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(per_step))
        if len(wrong):
            steps = self.recipe.epochs * len(sizes)
            rate = self.recipe.learning_rate(self.epoch * len(sizes) + int(wrong[0]), steps)
            raise Hopeless(
                f"the loss was {per_step[wrong[0]]} at epoch {self.epoch}, step {wrong[0]} (both "
                f"from 0), with a learning rate of {rate:.4g}; lower lr={self.recipe.lr}"
            )
        return float(np.average(per_step, weights=sizes))

    def _save(self) -> None:
        metrics = {"epoch": self.epoch, "train_loss": self.train_loss}
        logger.info("epoch %d of %d: loss %.4f", self.epoch, self.recipe.epochs, self.train_loss)
        with tempfile.TemporaryDirectory() as folder:
            more = self.save(Path(folder))
            if self.rank == 0:
                state = {
                    **metrics,
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "fingerprint": self.job.fingerprint,
                    **more,
                }
                torch.save(state, Path(folder) / _CHECKPOINT)
            some = any(Path(folder).iterdir())  # every worker must report
            checkpoint = ray.train.Checkpoint.from_directory(folder) if some else None
            ray.train.report(metrics, checkpoint=checkpoint)

    def facts(self) -> dict[str, Any]:
        """What is known of the training at its end."""
        cuda = self.device.type == "cuda"
        return {
            "train_loss": self.train_loss,
            "epochs": self.epoch,
            "device": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            "precision": str(self.dtype).removeprefix("torch."),
        }

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over workers, of a tensor that may be overwritten."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor


def _epoch_seed(seed: int, epoch: int, worker: int) -> int:
    """So that one that goes on from a checkpoint drops what an uninterrupted one would."""
    place = np.array([[epoch, worker]], np.uint64)
    return int(uid_uniform(seed, place, _DROPOUT)[0] * 2**53)
