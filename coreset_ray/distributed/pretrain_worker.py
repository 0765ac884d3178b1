"""One data-parallel worker that trains an encoder on images without labels: what Ray Train calls on
every worker."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import ray
import torch
from torch import nn

from coreset_ray.distributed.fit import Hopeless
from coreset_ray.distributed.train_loop import Training, Worker
from coreset_ray.distributed.train_worker import image_loader
from coreset_ray.io.filesystem import locate
from coreset_ray.io.images import decode
from coreset_ray.models.full_batches import FullBatches
from coreset_ray.models.image_cache import CachedImages, ImageCache
from coreset_ray.models.images import EpochBatches
from coreset_ray.models.preprocess import preprocess_of
from coreset_ray.models.pretrain import PretrainRecipe
from coreset_ray.models.self_supervised import build_self_supervised
from coreset_ray.models.spec import EncoderSpec
from coreset_ray.models.weights import write_tensors


@dataclass(frozen=True)
class Pretraining(Training):
    """images: path, offset and size of every row; max_pixels: of an image; scratch: a folder of
    each machine; weights: where the first worker writes what was learned."""

    recipe: PretrainRecipe
    encoder: EncoderSpec
    images: ray.ObjectRef
    rows: int
    max_pixels: int
    scratch: str
    weights: str
    loader_workers: int
    open_file: Callable[[str], BinaryIO]


def work(config: dict[str, Pretraining]) -> dict[str, Any]:
    """One worker, from start or checkpoint to the weights."""
    try:
        worker = _Pretrainer(config["job"])
        worker.restore()
        worker.train()
        worker.write()
        facts = worker.facts()
        shutil.rmtree(worker.scratch, ignore_errors=True)
        return facts
    except Hopeless as error:  # returned, as Ray Train would retry what is raised
        return {"hopeless": str(error)}


class _Pretrainer(Worker):
    """Trains an encoder and its head on two views of each image.

    On GPUs batch normalisation is over all workers' images; on CPUs each worker has its own.
    """

    job: Pretraining
    recipe: PretrainRecipe
    cache: ImageCache | None = None

    def __init__(self, job: Pretraining) -> None:
        self.losses: list[float] = []  # of each epoch
        super().__init__(job)
        folder = Path(job.scratch) / job.fingerprint[:16]  # others may train beside this one
        self.scratch = folder / f"worker-{self.rank}-of-{self.world}"

    def build(self) -> nn.Module:
        model = build_self_supervised(self.job.encoder, self.job.recipe)
        self.told = model  # what prepare_model may wrap
        if self.world > 1 and self.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    def batches(self) -> FullBatches:
        where = {"worker": self.rank, "workers": self.world}
        return FullBatches(self.job.rows, self.recipe.batch_size, seed=self.job.seed, **where)

    def train(self) -> None:
        if self.epoch < self.recipe.epochs:
            self.cache = ImageCache(self.scratch / "images", self.job.rows)
            super().train()

    def loader(self, batches: EpochBatches) -> Any:
        assert self.cache is not None
        table, prepare = ray.get(self.job.images), preprocess_of(self.job.encoder)
        images = CachedImages(
            table["path"].to_pylist(),
            table["offset"].to_numpy(),
            table["size"].to_numpy(),
            np.zeros(self.job.rows, np.int8),  # there are no labels
            cache=self.cache,
            image_size=prepare.size,
            decode=partial(decode, max_pixels=self.job.max_pixels),
            transform=self.recipe.views(prepare),
            open_file=self.job.open_file,
        )
        return image_loader(
            images, self.job.loader_workers, self.device.type, batch_sampler=batches
        )

    def loss(
        self, batches: EpochBatches, step: int, logits: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        return self.told.loss(logits, self.epoch)

    def ended(self) -> None:
        self.losses.append(self.train_loss)

    def save(self, folder: Path) -> dict[str, Any]:
        return {"losses": self.losses}

    def load(self, state: dict[str, Any], checkpoint: Any) -> None:
        self.losses = list(state["losses"])

    def write(self) -> None:
        """The encoder's weights, without its head; whole or absent."""
        if self.rank == 0:
            with locate(self.job.weights).replacing() as sink:
                sink.write(write_tensors(self.told.backbone.state_dict()))

    def facts(self) -> dict[str, Any]:
        """`losses` of each epoch; `cached`: of a call that trained, whether the images of at least
        an epoch were decoded once."""
        facts = {**super().facts(), "losses": self.losses}
        if self.cache is None:
            return facts
        kept = self.sum(torch.tensor(self.cache.kept(), device=self.device))
        return {**facts, "cached": kept.item() >= sum(self.batches().sizes)}
