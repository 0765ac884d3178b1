"""One classifier that learns task after task, and what it still knows after each."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from coreset_ray.models.images import EpochBatches, IndexedImages
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.recipe import Recipe

Batch = tuple[torch.Tensor, np.ndarray]  # inputs, and the numbers of their rows


class Learner(ABC):
    """Goes on from what the tasks before have taught; optimiser and schedule start anew. All
    randomness is a function of (seed, task, epoch, row).

    label: (n,) int64 of every row of the pool.
    """

    def __init__(
        self, recipe: MlpRecipe | Recipe, label: np.ndarray, classes: int, seed: int, device: str
    ) -> None:
        self.recipe, self.label, self.classes, self.seed = recipe, label, classes, seed
        self.device, self.task = torch.device(device), 0
        self.model: nn.Module | None = None

    @abstractmethod
    def build(self, rows: np.ndarray) -> nn.Module:
        """The untrained model, given what is learned first."""

    @abstractmethod
    def inputs(self, rows: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
        """Of rows of the pool, augmented by these seeds."""

    @abstractmethod
    def tests(self) -> Iterator[Batch]:
        """The test set."""

    def learn(self, rows: np.ndarray) -> None:
        """A task: rows of the pool, its own and those replayed. Raises `RuntimeError` for a loss
        that is not finite."""
        if self.model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self.model = self.build(rows).to(self.device)
        rows = np.sort(rows)
        batches = EpochBatches(len(rows), self.recipe.batch_size, seed=self.seed)
        steps = self.recipe.epochs * len(batches)
        optimizer = self.recipe.optimizer(self.model)
        scaler = torch.amp.GradScaler(enabled=self._dtype() == torch.float16)
        self.model.train()
        step = 0
        for epoch in range(self.recipe.epochs):
            batches.set_epoch(self.task * self.recipe.epochs + epoch)
            for batch in batches:
                for group in optimizer.param_groups:
                    group["lr"] = self.recipe.learning_rate(step, steps)
                places, seeds = np.array(batch).T
                loss = self._loss(rows[places], seeds)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                step += 1
            if not torch.isfinite(loss.detach()):
                raise RuntimeError(
                    f"the loss was {loss.item()} in task {self.task}, epoch {epoch} (both from 0); "
                    f"lower lr={self.recipe.lr}"
                )
        self.task += 1

    def _loss(self, rows: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
        assert self.model is not None
        target = torch.from_numpy(self.label[rows]).to(self.device)
        given = self.inputs(rows, seeds).to(self.device)
        with torch.autocast(self.device.type, self._dtype(), enabled=self._narrow()):
            logits = self.model(given)
        return nn.functional.cross_entropy(logits.float(), target)

    @torch.inference_mode()
    def predict(self, seen: np.ndarray, n: int) -> np.ndarray:
        """(n,) the likeliest of the classes seen, of each test image."""
        assert self.model is not None, "learn first"
        self.model.eval()
        found = np.empty(n, np.int64)
        known = torch.from_numpy(seen).to(self.device)
        for given, rows in self.tests():
            with torch.autocast(self.device.type, self._dtype(), enabled=self._narrow()):
                logits = self.model(given.to(self.device))
            found[rows] = seen[logits[:, known].argmax(1).cpu().numpy()]
        return found

    def _dtype(self) -> torch.dtype:
        return self.recipe.dtype(self.device)

    def _narrow(self) -> bool:
        return self._dtype() != torch.float32


class EmbeddingLearner(Learner):
    """An MLP on embeddings, standardised by what is learned first. pool: (n, m), test: (t, m)."""

    recipe: MlpRecipe

    def __init__(self, *told, pool: np.ndarray, test: np.ndarray) -> None:
        super().__init__(*told)
        self.pool, self.test = pool, test

    def build(self, rows: np.ndarray) -> nn.Module:
        deviation = self.pool[rows].std(axis=0)
        deviation[deviation == 0] = 1.0
        return self.recipe.build(self.classes, self.pool[rows].mean(axis=0), deviation)

    def inputs(self, rows: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.pool[rows])

    def tests(self) -> Iterator[Batch]:
        for rows in _slices(len(self.test), 4096):
            yield torch.from_numpy(self.test[rows]), rows


class ImageLearner(Learner):
    """A network on the images. pool: with the recipe's training transform; test: with its other."""

    recipe: Recipe

    def __init__(self, *told, pool: IndexedImages, test: IndexedImages) -> None:
        super().__init__(*told)
        self.pool, self.test = pool, test

    def build(self, rows: np.ndarray) -> nn.Module:
        return self.recipe.build(self.classes)

    def inputs(self, rows: np.ndarray, seeds: np.ndarray) -> torch.Tensor:
        keys = zip(rows.tolist(), seeds.tolist(), strict=True)
        return torch.stack([self.pool[key][0] for key in keys])

    def tests(self) -> Iterator[Batch]:
        for rows in _slices(len(self.test), self.recipe.batch_size):
            yield torch.stack([self.test[int(row)][0] for row in rows]), rows


def learn_tasks(
    learner: Learner,
    tasks: Sequence[np.ndarray],
    replayed: Sequence[np.ndarray],
    classes: Sequence[np.ndarray],
    truth: np.ndarray,
) -> np.ndarray:
    """(T, T) int64: test images of task j classified right after task i, among the classes seen.

    tasks: rows that are new in each; replayed: what the memory holds after each; classes: of each
    task; truth: (t,) classes of the test images.
    """
    hits = np.zeros((len(tasks), len(tasks)), np.int64)
    memory = np.empty(0, np.int64)
    for i, new in enumerate(tasks):
        learner.learn(np.union1d(new, memory))
        memory = replayed[i]
        right = learner.predict(np.concatenate(classes[: i + 1]), len(truth)) == truth
        hits[i, : i + 1] = [right[np.isin(truth, own)].sum() for own in classes[: i + 1]]
    return hits


def _slices(n: int, size: int) -> Iterator[np.ndarray]:
    for first in range(0, n, size):
        yield np.arange(first, min(first + size, n))
