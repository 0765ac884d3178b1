"""One data-parallel worker of a deep clustering: what Ray Train calls on every worker."""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device, prepare_model

from coreset_ray.clustering.agreement import collapsed, contingency, matched, usage
from coreset_ray.clustering.deep import DeepClustering, HeadSettings
from coreset_ray.clustering.heads import Heads
from coreset_ray.clustering.labeler import Labeler, block_rows, head_probability
from coreset_ray.core.random import below
from coreset_ray.distributed.fit import Hopeless, hopeless_where_refused
from coreset_ray.io.array_files import machine_folder
from coreset_ray.io.embedding_rows import lay_rows
from coreset_ray.io.filesystem import locate
from coreset_ray.io.neighbor_rows import lay_neighbors
from coreset_ray.io.tables import PartedTable
from coreset_ray.models.images import EpochBatches

logger = logging.getLogger(__name__)

_CHECKPOINT = "state.pt"

Count = Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class HeadJob:
    """table: folder of the pool's embeddings; parts: rows of each; neighbors: folder of the k-NN
    signal; scratch: a folder of each machine; out: where the trained heads go; epochs: after
    which this run stops, settings.epochs at most; fingerprint: of all that decides the result."""

    table: str
    parts: dict[str, int]
    neighbors: str
    settings: HeadSettings
    scratch: str
    out: str
    epochs: int
    checkpoint_every: int
    fingerprint: str


def work(config: dict[str, HeadJob]) -> dict[str, Any]:
    """One worker, from start or checkpoint to matched heads in a file."""
    try:
        worker = _Worker(config["job"])
        worker.restore()
        worker.train()
        return worker.finish()
    except Hopeless as error:  # returned, as Ray Train would retry what is raised
        return {"hopeless": str(error)}


class _Worker:
    """Heads, data and progress of one data-parallel worker."""

    def __init__(self, job: HeadJob) -> None:
        context = ray.train.get_context()
        self.job, self.settings = job, job.settings
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        with hopeless_where_refused():
            table, scratch = PartedTable(locate(job.table)), machine_folder(job.scratch)
            laid = lay_rows(scratch / "rows", table, job.parts)
            neighbors = scratch / Path(job.neighbors).name  # by content
            self.neighbors = lay_neighbors(neighbors, locate(job.neighbors), job.parts)
        self.rows = laid.rows
        heads = Heads(
            *(torch.from_numpy(laid.mean), torch.from_numpy(laid.deviation)),
            *(job.settings.classes, job.settings.heads),
            hidden=job.settings.hidden,
            seed=job.settings.seed,
        )
        self.clustering = DeepClustering(job.settings, heads.to(self.device))
        if self.world > 1:
            self.clustering.parallel = prepare_model(self.clustering.student)
        self.epoch, self.loss = 0, torch.full((job.settings.heads,), torch.nan)

    def restore(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            path = os.path.join(folder, _CHECKPOINT)
            state = torch.load(path, map_location="cpu", weights_only=True)
        if state["fingerprint"] != self.job.fingerprint:
            raise Hopeless(
                "its folder holds a checkpoint of other data or settings; choose another name or "
                "delete that folder"
            )
        self.clustering.load(state["clustering"])
        self.epoch, self.loss = state["epoch"], state["loss"]
        logger.info("resumed after epoch %d of %d", self.epoch, self.settings.epochs)

    def train(self) -> None:
        batches = EpochBatches(
            len(self.rows),
            self.settings.batch_size,
            seed=self.settings.seed,
            worker=self.rank,
            workers=self.world,
        )
        while self.epoch < self.job.epochs:
            batches.set_epoch(self.epoch)
            self.loss = self._train_epoch(batches)
            self.epoch += 1
            if self.epoch % self.job.checkpoint_every == 0 or self.epoch == self.job.epochs:
                self._save()

    def _train_epoch(self, batches: EpochBatches) -> torch.Tensor:
        """The mean loss of each head over the epoch's pairs, (h,) float64."""
        whole, losses = batches.batches, []
        for step, (batch, share) in enumerate(zip(whole, batches, strict=True)):
            loss = self.clustering.step(
                self._pairs(share),
                self.settings.learning_rate(self.epoch * len(whole) + step, len(whole)),
                rows=len(batch),
                workers=self.world,
                reduce=self._sum,
            )
            losses.append(loss)
        return self._epoch_loss(torch.stack(losses), whole)

    def _pairs(self, share: list[tuple[int, int]]) -> torch.Tensor:
        """(2, b, m): rows, and of each a neighbour that its word of this epoch draws."""
        row, word = np.array(share, np.int64).T
        k = self.neighbors.shape[1]
        other = self.neighbors[row, below(word.astype(np.uint64) << np.uint64(1), k)]
        pairs = torch.from_numpy(np.stack([self.rows[row], self.rows[other]]))
        return pairs.to(self.device, non_blocking=True)

    def _epoch_loss(self, losses: torch.Tensor, batches: list[np.ndarray]) -> torch.Tensor:
        """Checked once an epoch, together, so that no step waits and all workers stop alike.

        losses: (steps, h) of this worker.
        """
        per_step = self._sum(losses.double()).cpu() / self.world
        wrong = (~per_step.isfinite()).any(1).nonzero().flatten().tolist()
        if wrong:
            step = self.epoch * len(batches) + wrong[0]
            raise Hopeless(
                f"the loss was {per_step[wrong[0]].mean():.4g} at epoch {self.epoch}, step "
                f"{wrong[0]} (both from 0), with a learning rate of "
                f"{self.settings.learning_rate(step, len(batches)):.4g}; "
                f"lower lr={self.settings.lr:.4g} or raise warmup_epochs"
            )
        weight = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
        return (weight[:, None] * per_step).sum(0) / weight.sum()

    def _save(self) -> None:
        metrics = {"epoch": self.epoch, "loss": float(self.loss.mean())}
        logger.info("epoch %d of %d: loss %.4f", self.epoch, self.settings.epochs, metrics["loss"])
        if self.rank != 0:
            ray.train.report(metrics)  # every worker must report
            return
        state = {
            "clustering": self.clustering.state(),
            "epoch": self.epoch,
            "loss": self.loss,
            "fingerprint": self.job.fingerprint,
        }
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, os.path.join(folder, _CHECKPOINT))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def finish(self) -> dict[str, Any]:
        """Leaves out heads that collapsed, matches the others to the one of least loss, and
        writes them. Returns how each head fared, and `written`: whether any was of use."""
        done = {"epochs": self.epoch, "written": False}
        if self.epoch < self.settings.epochs:
            return done
        heads, loss = self.clustering.teacher, self.loss.numpy()
        mass, used = self._over_pool(heads, usage)
        gone = collapsed(mass, used)
        facts = {
            **done,
            "loss": loss.tolist(),
            "collapsed": np.flatnonzero(gone).tolist(),
            "largest_share": (mass.max(axis=1) / mass.sum(axis=1)).round(4).tolist(),
            "device": self.device.type,
            "precision": "bfloat16" if self.device.type == "cuda" else "float32",
        }
        if gone.all():
            return facts
        kept = np.flatnonzero(~gone)
        best = int(loss[kept].argmin())  # of those kept
        few = heads.reorder(torch.from_numpy(kept), None)
        (table,) = self._over_pool(few, lambda p: (contingency(p, best),))
        few = few.reorder(torch.arange(len(kept)), torch.from_numpy(matched(table)))
        labeler = Labeler(few, self.settings, best)
        (rows,) = self._over_pool(few, lambda p: (labeler.counts(p),))
        facts |= {"best_head": int(kept[best]), "rows_of_label": rows.astype(int).tolist()}
        if collapsed(rows[None], rows[None])[0]:
            return facts
        facts["written"] = True
        if self.rank == 0:
            state = {**labeler.state(), "facts": facts, "fingerprint": self.job.fingerprint}
            with (locate(self.job.out) / "heads.pt").replacing() as sink:
                torch.save(state, sink)
        return facts

    def _over_pool(self, heads: Heads, count: Count) -> list[np.ndarray]:
        """Sums over all rows of what `count` makes of (h, b, c) probabilities; workers take turns
        at blocks. In float64: the number of workers moves last digits at most."""
        size, sums = block_rows(heads), None
        for start in range(self.rank * size, len(self.rows), self.world * size):
            rows = torch.from_numpy(self.rows[start : start + size].copy()).to(self.device)
            found = count(head_probability(heads, rows, self.settings.temperature))
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
        if sums is None:  # more workers than blocks
            rows = torch.from_numpy(self.rows[:1].copy()).to(self.device)
            found = count(head_probability(heads, rows, self.settings.temperature))
            sums = [torch.zeros_like(a) for a in found]
        return [self._sum(a.double()).cpu().numpy() for a in sums]

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over workers, of a tensor that may be overwritten."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor
