"""How an encoder is trained by self-supervision: augmentation, optimiser, schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from coreset_ray.models.preprocess import Preprocess
from coreset_ray.models.recipe import Precision, check_precision, compute_dtype, cosine
from coreset_ray.models.resnet import SMALL

_HUE, _SATURATION, _LIGHT = 0.2, 0.8, 0.8  # of the colour jitter at strength 1


@dataclass(frozen=True)
class PretrainRecipe:
    """What all methods share: two augmented views of each image, AdamW, a linear warm-up and then a
    cosine to a rate of 0.

    batch_size: images in one optimiser step, over all workers together, from which each image is
    told apart: larger is better as far as memory goes. hidden, width: of the projection head.
    crop: the smallest share of an image's area that a view shows, by default 0.08, and 0.2 up to 64
    pixels a side, where less would be a few pixels. color: strength of the colour jitter, by
    default 1, and 0.5 up to 64 pixels. blur: share of the views that are blurred, by default 0.5,
    and 0 up to 64 pixels. gray: share that loses its colours. flip: mirror half of the views; turn
    it off for digits and text. precision: auto is bfloat16 (float16 on older GPUs) on CUDA,
    float32 on the CPU.

    Raises `ValueError` for a value outside its range.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}  # no unknown settings

    epochs: int = 200
    batch_size: int = 256
    lr: float = 1e-3
    warmup_epochs: int = 10
    weight_decay: float = 1e-4
    hidden: int = 2048
    width: int = 128
    crop: float | None = None
    color: float | None = None
    blur: float | None = None
    gray: float = 0.2
    flip: bool = True
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        least = {"epochs": 1, "batch_size": 2, "warmup_epochs": 0, "hidden": 1, "width": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {bound}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr={self.lr}: expected a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay}: expected a number from 0 up")
        for name in ("crop", "color", "blur", "gray"):
            value = getattr(self, name)
            if (value is not None and not 0 <= value <= 1) or (name == "crop" and value == 0):
                raise ValueError(f"{name}={value}: expected a share, from 0 to 1 (crop: above 0)")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over all parameters that learn; set each step's rate from `learning_rate`."""
        learning = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, self.lr, weight_decay=self.weight_decay)

    def learning_rate(self, step: int, steps: int) -> float:
        """Of step 0 … steps - 1, a function of the step alone."""
        warm = round(steps * min(1.0, self.warmup_epochs / self.epochs))
        if step < warm:
            return self.lr * (step + 1) / warm
        return cosine(self.lr, 0.0, step - warm, steps - warm)

    def dtype(self, device: torch.device) -> torch.dtype:
        """What the forward pass computes in on this device; parameters stay float32."""
        return compute_dtype(self.precision, device)

    def views(self, prepare: Preprocess) -> "Views":
        """PIL RGB of any size → (2, 3, S, S) float32, normalised as the encoder's images are."""
        return Views(self, prepare)


@dataclass(frozen=True)
class SimclrRecipe(PretrainRecipe):
    """SimCLR (Chen et al., 2020): the two views of an image are found among those of all other
    images of the batch. temperature: of the cosines."""

    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _above_zero("temperature", self.temperature)


@dataclass(frozen=True)
class SwavRecipe(PretrainRecipe):
    """SwAV (Caron et al., 2020), with two views and without its queue: each view tells which
    prototypes the other one is assigned to, where a batch is spread evenly over all of them.

    prototypes: fewer than batch_size. frozen_epochs: during which they do not learn. temperature:
    of the prediction; epsilon: of the assignment.
    """

    prototypes: int = 128
    frozen_epochs: int = 1
    temperature: float = 0.1
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _above_zero("temperature", self.temperature)
        _above_zero("epsilon", self.epsilon)
        if self.frozen_epochs < 0:
            raise ValueError(f"frozen_epochs={self.frozen_epochs}: expected at least 0")
        if not 2 <= self.prototypes < self.batch_size:
            raise ValueError(
                f"prototypes={self.prototypes}: expected at least 2, and fewer than "
                f"batch_size={self.batch_size}, as a batch is spread evenly over them"
            )


RECIPES: dict[str, type[PretrainRecipe]] = {"simclr": SimclrRecipe, "swav": SwavRecipe}


class Views:
    """Two augmentations of an image, side by side.

    All randomness comes from torch's global CPU generator. An image is enlarged to the encoder's
    size from the crop, so that up to 64 pixels no view shows less than a fifth of it.
    """

    def __init__(self, recipe: PretrainRecipe, prepare: Preprocess) -> None:
        size, small = prepare.size, prepare.size <= SMALL
        crop = recipe.crop if recipe.crop is not None else (0.2 if small else 0.08)
        color = recipe.color if recipe.color is not None else (0.5 if small else 1.0)
        blur = recipe.blur if recipe.blur is not None else (0.0 if small else 0.5)
        light = color * _LIGHT
        jitter = v2.ColorJitter(light, light, color * _SATURATION, color * _HUE)
        kernel = 2 * (size // 20) + 1  # a tenth of the image, odd
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(crop, 1.0)),
                *([v2.RandomHorizontalFlip()] if recipe.flip else []),
                *([v2.RandomApply([jitter], p=0.8)] if color else []),
                *([v2.RandomGrayscale(recipe.gray)] if recipe.gray else []),
                v2.PILToTensor(),
                *([v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=blur)] if blur else []),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(prepare.mean), list(prepare.std)),
            ]
        )

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.stack([self.transform(image), self.transform(image)])


def _above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: expected a number above 0")
