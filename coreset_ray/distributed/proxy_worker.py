"""One data-parallel worker that trains several classifiers on embeddings at once: what Ray Train
calls on every worker."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from coreset_ray.distributed.fit import Hopeless, hopeless_where_refused
from coreset_ray.distributed.labels import read_labels
from coreset_ray.distributed.train_loop import Training, Worker
from coreset_ray.io.array_files import machine_folder
from coreset_ray.io.embedding_rows import EmbeddingRows, lay_rows
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable
from coreset_ray.models.images import EpochBatches, OwnedBatches
from coreset_ray.models.mlp import ProxyRecipe
from coreset_ray.models.proxy import build_runs
from coreset_ray.models.recipe import batch_loss


@dataclass(frozen=True)
class ProxyJob(Training):
    """table, labels: folders; parts: rows of each, in the order that numbers rows; seeds: of each
    run; scratch: a folder of each machine; out: where the models are left."""

    recipe: ProxyRecipe
    table: str
    parts: dict[str, int]
    labels: str
    seeds: tuple[int, ...]
    scratch: str
    out: str


def work(config: dict[str, ProxyJob]) -> dict[str, Any]:
    """One worker, from start or checkpoint to the models of all runs in OUT/models.pt."""
    try:
        worker = _ProxyWorker(config["job"])
        worker.restore()
        worker.train()
        return worker.finish()
    except Hopeless as error:  # returned, as Ray Train would retry what is raised
        return {"hopeless": str(error)}


class _ProxyWorker(Worker):
    """A step takes one batch of each run, of as many rows in all; row i is always with worker
    i mod workers."""

    job: ProxyJob
    recipe: ProxyRecipe

    def __init__(self, job: ProxyJob) -> None:
        super().__init__(job)
        self.label = read_labels(job.labels, job.parts, self.rank, self.world)

    @cached_property
    def embedding(self) -> EmbeddingRows:
        table = PartedTable(locate(self.job.table))
        with hopeless_where_refused():
            return lay_rows(machine_folder(self.job.scratch) / "rows", table, self.job.parts)

    def build(self) -> nn.Module:
        mean, deviation = self.embedding.mean, self.embedding.deviation
        return build_runs(self.recipe, self.job.classes, mean, deviation, self.job.seeds)

    def batches(self) -> "_RunBatches":
        where = {"worker": self.rank, "workers": self.world}
        rows = len(self.embedding.rows)
        return _RunBatches(rows, self.recipe.batch_size, self.job.seeds, **where)

    def loader(self, batches: EpochBatches) -> "_Rows":
        assert isinstance(batches, _RunBatches)
        return _Rows(self.embedding.rows, self.label, batches)

    def loss(
        self, batches: EpochBatches, step: int, logits: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """The sum over runs, so that each learns as it would alone."""
        return batch_loss(logits.flatten(0, 1), label.flatten(), None) * len(self.job.seeds)

    def finish(self) -> dict[str, Any]:
        """train_loss: the mean over runs, none where nothing was trained."""
        loss = self.train_loss / len(self.job.seeds)
        facts = {**self.facts(), "train_loss": None if math.isnan(loss) else loss}
        if self.rank == 0:
            models = {name: value.cpu() for name, value in self.model.state_dict().items()}
            state = {"models": models, "facts": facts, "fingerprint": self.job.fingerprint}
            with (locate(self.job.out) / "models.pt").replacing() as sink:
                torch.save(state, sink)
        return facts


class _RunBatches(OwnedBatches):
    """The batches of the first run, with those of all runs in `runs`: of the same sizes, each
    shuffled by its own seed."""

    def __init__(
        self, rows: int, batch_size: int, seeds: Sequence[int], *, worker: int, workers: int
    ) -> None:
        where = {"worker": worker, "workers": workers}
        others = [OwnedBatches(rows, batch_size, seed=seed, **where) for seed in seeds[1:]]
        self.runs: list[OwnedBatches] = [self, *others]
        super().__init__(rows, batch_size, seed=seeds[0], **where)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        for other in self.runs[1:]:
            other.set_epoch(epoch)


@dataclass(frozen=True)
class _Rows:
    """This worker's share of each step: embeddings (b, runs, m) float32, labels (b, runs) int64."""

    rows: np.ndarray
    label: np.ndarray
    batches: _RunBatches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(len(self.batches)):
            own = np.stack([run.own[step] for run in self.batches.runs], axis=1)
            given = self.rows[self.batches.row(own)].astype(np.float32, copy=False)
            yield torch.from_numpy(given), torch.from_numpy(self.label[own].astype(np.int64))
