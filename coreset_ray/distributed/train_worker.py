"""One data-parallel worker that trains on a coreset's images and tests on others: what Ray Train
calls on every worker."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import ray
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from coreset_ray.distributed.fit import Hopeless
from coreset_ray.distributed.train_loop import Training, Worker
from coreset_ray.io.images import decode
from coreset_ray.models.images import EpochBatches, IndexedImages
from coreset_ray.models.recipe import Recipe, batch_loss, own_loss

MAX_PIXELS = 200_000_000


@dataclass(frozen=True)
class Job(Training):
    """The tables stay in the object store."""

    recipe: Recipe
    train: ray.ObjectRef
    test: ray.ObjectRef
    loader_workers: int
    open_file: Callable[[str], BinaryIO]


def work(config: dict[str, Job]) -> dict[str, Any]:
    """One worker, from start or checkpoint to the tested model."""
    try:
        worker = _ImageWorker(config["job"])
        worker.restore()
        worker.train()
        return worker.test()
    except Hopeless as error:  # returned, as Ray Train would retry what is raised
        return {"hopeless": str(error)}


class _ImageWorker(Worker):
    """Trains a ResNet."""

    def __init__(self, job: Job) -> None:
        self.images = job
        self.table = ray.get(job.train)
        weighted = job.recipe.weighted
        self.weight = torch.from_numpy(self.table["weight"].to_numpy().copy()) if weighted else None
        super().__init__(job)

    def build(self) -> nn.Module:
        return self.images.recipe.build(self.job.classes)

    def batches(self) -> EpochBatches:
        return EpochBatches(
            len(self.table),
            self.recipe.batch_size,
            seed=self.job.seed,
            worker=self.rank,
            workers=self.world,
        )

    def loader(self, batches: EpochBatches) -> DataLoader:
        images = self._read(self.table, self.images.recipe.train_transform())
        return image_loader(
            images, self.images.loader_workers, self.device.type, batch_sampler=batches
        )

    def loss(
        self, batches: EpochBatches, step: int, logits: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        batch = batches.batches[step]
        if self.weight is not None and self.images.recipe.weighted == "each":
            return own_loss(logits, label, self.weight[batch[self.rank :: self.world]])
        return batch_loss(logits, label, None if self.weight is None else self.weight[batch])

    @torch.inference_mode()
    def test(self) -> dict[str, Any]:
        """Each worker tests every world-th row; the sum of hits is exact."""
        images = self._read(ray.get(self.images.test), self.images.recipe.test_transform())
        if self.world > 1:  # each worker's running statistics are its own: take the first's
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        self.model.eval()
        hits = torch.zeros(2, dtype=torch.int64, device=self.device)
        how: dict[str, Any] = {
            "sampler": range(self.rank, len(images), self.world),
            "batch_size": self.recipe.batch_size,
        }
        loader = image_loader(images, self.images.loader_workers, self.device.type, **how)
        for image, label in loader:
            with self.autocast():
                predicted = self.model(self.move(image)).argmax(1)
            hits += torch.stack(
                [(predicted == self.move(label)).sum(), hits.new_tensor(len(label))]
            )
        right, total = self.sum(hits).tolist()
        assert total == len(images), (total, len(images))
        return {"accuracy": right / total, "test_images": total, **self.facts()}

    def _read(self, table: pa.Table, transform: v2.Transform) -> IndexedImages:
        return IndexedImages(
            table["path"].to_pylist(),
            table["offset"].to_numpy(),
            table["size"].to_numpy(),
            table["label"].to_numpy(),
            decode=partial(decode, max_pixels=MAX_PIXELS),
            transform=transform,
            open_file=self.images.open_file,
        )


def image_loader(images: Any, processes: int, device: str, **batches: Any) -> DataLoader:
    """Loading processes start afresh and stay: a fork would inherit Ray's and S3's threads."""
    return DataLoader(
        images,
        num_workers=processes,
        multiprocessing_context="spawn" if processes else None,
        persistent_workers=processes > 0,
        pin_memory=device == "cuda",
        **batches,
    )
