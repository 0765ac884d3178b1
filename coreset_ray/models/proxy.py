"""Classifiers trained for a few epochs side by side, and what they make of an image: its class
probabilities, features, gradient norms and the distance to another class."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from coreset_ray.models.deepfool import deepfool
from coreset_ray.models.dynamics import measure
from coreset_ray.models.mlp import Mlp, ProxyRecipe

MEASURES = ("probability", "feature", "gradient_norm", "perturbation")

_ROWS, _VALUES = 1024, 1 << 22  # of a batch, at most: rows, and numbers rows · classes · hidden


class Runs(nn.Module):
    """(b, runs, m) embeddings → (b, runs, c) logits: models of one shape, each of its own seed and
    none touched by another."""

    def __init__(self, models: Sequence[Mlp]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return torch.stack([model(embedding[:, r]) for r, model in enumerate(self.models)], 1)

    def run(self, number: int) -> Mlp:
        """One of the models."""
        model = self.models[number]
        assert isinstance(model, Mlp)
        return model


def build_runs(
    recipe: ProxyRecipe, classes: int, mean: np.ndarray, deviation: np.ndarray, seeds: Sequence[int]
) -> Runs:
    """Untrained; the weights of each are a function of its seed alone. mean, deviation: (m,), of
    the embeddings."""
    models = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            models.append(recipe.build(classes, mean, deviation))
    return Runs(models)


def runs_of(state: dict[str, torch.Tensor]) -> Runs:
    """The models whose `state_dict` this is."""
    first, last = (state[f"models.0.layers.{i}.weight"] for i in (0, 2))
    runs = 1 + max(int(name.split(".")[1]) for name in state)
    shape = np.zeros(first.shape[1]), np.ones(first.shape[1])
    models = Runs([Mlp(*shape, first.shape[0], last.shape[0]) for _ in range(runs)])
    models.load_state_dict(state)
    return models


@torch.no_grad()
def measure_runs(models: Runs, embedding: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """`MEASURES` of rows, float32. embedding: (n, m); label: (n,) integers.

    probability (n, c): softmax of the first run; feature (n, h): the input of its last layer;
    gradient_norm (n, runs): ‖p - onehot(label)‖₂ · √(‖feature‖₂² + 1) in each run, the norm of
    the loss's gradient by the last layer's weight and bias; perturbation (n,): ‖r‖₂ of the first
    run's `deepfool` on the standardised embedding, infinite where none was found.

    In batches of one size, so that a row's digits depend on its place in the call alone.
    """
    first = models.run(0)
    last = first.layers[2]
    assert isinstance(last, nn.Linear)
    size = max(1, min(_ROWS, _VALUES // last.weight.numel()))
    found: list[list[torch.Tensor]] = []
    for start in range(0, len(embedding), size):
        some = slice(start, start + size)
        given, target = torch.tensor(embedding[some]), torch.tensor(label[some].astype(np.int64))
        told = [_gradient(models.run(r), given, target) for r in range(len(models.models))]
        probability, feature, _ = told[0]
        moved, changed = deepfool(first.layers, first.standardize(given))
        length = torch.linalg.vector_norm(moved, dim=1).float()
        norms = torch.stack([norm for _, _, norm in told], 1)
        found.append([probability, feature, norms, torch.where(changed, length, torch.inf)])
    columns = (torch.cat(values).numpy() for values in zip(*found, strict=True))
    return dict(zip(MEASURES, columns, strict=True))


def _gradient(
    model: Mlp, given: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probability (b, c), feature (b, h), norm of the last layer's gradient (b,)."""
    feature = model.layers[:2](model.standardize(given))
    told, log_p = measure(model.layers[2](feature), label, None)
    bias = (feature.square().sum(1) + 1).sqrt()
    return log_p.exp(), feature, told["error_norm"] * bias
