"""A small classifier on embeddings, and how it is trained: minutes where a ResNet takes days."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from coreset_ray.core.random import draw_words
from coreset_ray.models.recipe import Precision, check_precision, compute_dtype, cosine


@dataclass(frozen=True)
class MlpRecipe:
    """One hidden layer on standardised embeddings, trained along a cosine to a rate of 0.

    hidden: width of the hidden layer. batch_size: rows in one optimiser step, over all workers
    together. lr: at the start; 0.001 suits adamw, 0.1 sgd (with Nesterov momentum 0.9).
    precision: auto is bfloat16 (float16 on older GPUs) on CUDA, float32 on the CPU.

    Raises `ValueError` for a value outside its range.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}  # no unknown settings
    fewest_epochs: ClassVar[int] = 1

    hidden: int = 512
    epochs: int = 30
    batch_size: int = 512
    optimizer_name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.optimizer_name not in ("adamw", "sgd"):
            raise ValueError(f"optimizer_name={self.optimizer_name!r}: expected adamw or sgd")
        for name, least in (("hidden", 1), ("epochs", self.fewest_epochs), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}: expected a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay}: expected a number from 0 up")

    def build(self, classes: int, mean: np.ndarray, deviation: np.ndarray) -> "Mlp":
        """The untrained model, its weights drawn from torch's global generator. mean, deviation:
        (m,), of the embeddings."""
        return Mlp(mean, deviation, self.hidden, classes)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over all parameters; set each step's rate from `learning_rate`."""
        weights, decay = model.parameters(), self.weight_decay
        if self.optimizer_name == "adamw":
            return torch.optim.AdamW(weights, self.lr, weight_decay=decay)
        return torch.optim.SGD(weights, self.lr, 0.9, weight_decay=decay, nesterov=True)

    def learning_rate(self, step: int, steps: int) -> float:
        """Of step 0 … steps - 1, a function of the step alone."""
        return cosine(self.lr, 0.0, step, steps)

    def dtype(self, device: torch.device) -> torch.dtype:
        """What the forward pass computes in on this device; parameters stay float32."""
        return compute_dtype(self.precision, device)


@dataclass(frozen=True)
class ProxyRecipe(MlpRecipe):
    """The same for a classifier that is asked after a few epochs what it makes of each image;
    untrained after none."""

    fewest_epochs: ClassVar[int] = 0

    hidden: int = 128
    epochs: int = 10


class Mlp(nn.Module):
    """(b, m) embeddings, not standardised → (b, classes) logits."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: np.ndarray, deviation: np.ndarray, hidden: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean.astype(np.float32)))
        self.register_buffer("deviation", torch.from_numpy(deviation.astype(np.float32)))
        self.layers = nn.Sequential(
            nn.Linear(len(mean), hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.layers(self.standardize(embedding))

    def standardize(self, embedding: torch.Tensor) -> torch.Tensor:
        """(b, m) → (b, m) float32, what the first layer sees."""
        return (embedding.float() - self.mean) / self.deviation


def fit_and_test(
    recipe: MlpRecipe,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: int,
    seed: int,
) -> float:
    """Accuracy on the test rows of a classifier trained on the others, in this process.

    train, test: embeddings (n, m) and labels (n,) integers from 0 to classes - 1. The same batches
    and numbers whatever else the process does.
    """
    rows, label = torch.from_numpy(np.ascontiguousarray(train[0])), torch.from_numpy(train[1])
    deviation = train[0].std(axis=0)
    deviation[deviation == 0] = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build(classes, train[0].mean(axis=0), deviation)
    optimizer = recipe.optimizer(model)
    steps = -(-len(rows) // recipe.batch_size)
    for step in range(recipe.epochs * steps):
        epoch, batch = divmod(step, steps)
        if batch == 0:
            words = draw_words(seed, epoch * len(rows), len(rows), 1)[:, 0]
            order = torch.from_numpy(np.argsort(words, kind="stable"))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step, recipe.epochs * steps)
        some = order[batch * recipe.batch_size :][: recipe.batch_size]
        loss = nn.functional.cross_entropy(model(rows[some]), label[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        found = model(torch.from_numpy(np.ascontiguousarray(test[0]))).argmax(1).numpy()
    return float((found == test[1]).mean())
