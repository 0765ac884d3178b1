"""Networks that learn from images alone: an encoder with the head and loss of SimCLR or SwAV, which
are lightly's (the extra `ssl`)."""

import importlib.util
from typing import Any

import torch
from torch import nn

from coreset_ray.models.pretrain import PretrainRecipe, SimclrRecipe, SwavRecipe
from coreset_ray.models.spec import EncoderSpec
from coreset_ray.models.untrained import build_untrained


def check_library() -> None:
    """`ValueError` where lightly is not installed."""
    if importlib.util.find_spec("lightly") is None:
        raise ValueError(
            "pretrain: the package lightly is not installed here; install coreset-ray with the "
            "extra `ssl`, on every node"
        )


def build_self_supervised(spec: EncoderSpec, recipe: PretrainRecipe) -> "Simclr | Swav":
    """An untrained encoder and what it is trained with, drawn from torch's global generator.

    Raises `ValueError` for an encoder that is not built from scratch, see `build_untrained`, and
    where lightly is not installed.
    """
    check_library()
    backbone, width = build_untrained(spec)
    if isinstance(recipe, SimclrRecipe):
        return Simclr(backbone, width, recipe)
    assert isinstance(recipe, SwavRecipe), recipe
    return Swav(backbone, width, recipe)


class Simclr(nn.Module):
    """(b, 2, 3, S, S) views → (b, 2, width) projections, and what they are judged by."""

    def __init__(self, backbone: nn.Module, features: int, recipe: SimclrRecipe) -> None:
        super().__init__()
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        self.backbone = backbone
        self.head = SimCLRProjectionHead(features, recipe.hidden, recipe.width)
        self._told = NTXentLoss(recipe.temperature, gather_distributed=True)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return _by_view(views, lambda x: self.head(self.backbone(x)))

    def loss(self, out: torch.Tensor, epoch: int) -> torch.Tensor:
        """A scalar; all workers' views are each other's negatives. Workers hold as many each."""
        first, second = out.float().unbind(1)
        return self._told(first, second)


class Swav(nn.Module):
    """(b, 2, 3, S, S) views → (b, 2, prototypes) cosines, and what they are judged by."""

    def __init__(self, backbone: nn.Module, features: int, recipe: SwavRecipe) -> None:
        super().__init__()
        from lightly.loss import SwaVLoss
        from lightly.models.modules.heads import SwaVProjectionHead, SwaVPrototypes

        self.backbone = backbone
        self.head = SwaVProjectionHead(features, recipe.hidden, recipe.width)
        self.prototypes = SwaVPrototypes(recipe.width, recipe.prototypes)
        (layer,) = self.prototypes.heads
        assert isinstance(layer, nn.Linear)
        layer.bias.data.zero_()  # the paper's have none: what is left is a cosine
        layer.bias.requires_grad_(False)
        layer.weight.register_hook(self._unless_frozen)
        self.frozen_epochs, self._frozen = recipe.frozen_epochs, True
        self._told = SwaVLoss(
            recipe.temperature,
            sinkhorn_epsilon=recipe.epsilon,
            sinkhorn_gather_distributed=True,
        )

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.prototypes.normalize()
        return _by_view(views, self._cosines)

    def loss(self, out: torch.Tensor, epoch: int) -> torch.Tensor:
        """A scalar; the batch of all workers is spread over the prototypes together."""
        self._frozen = epoch < self.frozen_epochs
        return self._told(list(out.float().unbind(1)), []).squeeze()

    def _cosines(self, images: torch.Tensor) -> torch.Tensor:
        features = self.head(self.backbone(images)).float()
        return self.prototypes(nn.functional.normalize(features, dim=1))

    def _unless_frozen(self, gradient: torch.Tensor) -> torch.Tensor:
        """In the first epochs. Without a gradient the parameter would be missing from what the
        workers exchange."""
        return torch.zeros_like(gradient) if self._frozen else gradient


def _by_view(views: torch.Tensor, network: Any) -> torch.Tensor:
    """Both views of all images in one pass: batch normalisation cannot tell them apart."""
    out = network(views.flatten(0, 1))
    return out.view(len(views), 2, -1)
