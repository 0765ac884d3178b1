"""How a coreset's classifier is trained: model, augmentation, optimiser, schedule and loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torchvision.transforms import v2

from coreset_ray.models.classifiers import build_classifier, check_classifier
from coreset_ray.models.resnet import SMALL

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# ImageNet's channel statistics, for every data set: a fixed affine map of the pixels, so the
# result does not depend on statistics taken from data that a coreset leaves out.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """The training protocol of BlindCS section 6.1; the defaults are its CIFAR settings.

    (For ImageNet: model resnet34, 60 epochs, batch_size 256, image_size 224.)

    model: one of coreset_ray/models/classifiers.py; those without batch normalisation (mlp, lenet,
    alexnet) want a smaller lr.
    batch_size: images in one optimiser step, over all workers together.
    lr, min_lr: start and end of the cosine. image_size: pixels a side.
    padding: pixels added on each side before the random crop (image_size ≤ 64 only).
    flip: mirror half of the training images; turn it off for digits and text.
    precision: auto is bfloat16 (float16 on older GPUs) on CUDA, float32 on the CPU.
    weighted: scale each batch's loss by its mean sample weight (Eq. 10); each: the loss of each
    image by its own.

    Raises `ValueError` for a value outside its range.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}  # no unknown settings

    model: str = "resnet18"
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    min_lr: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    image_size: int = 32
    padding: int = 4
    flip: bool = True
    precision: Precision = "auto"
    weighted: bool | Literal["each"] = False

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for name, least in (("epochs", 1), ("batch_size", 2), ("image_size", 8), ("padding", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        check_classifier(self.model, self.image_size)
        if not 0 <= self.min_lr <= self.lr < math.inf or self.lr == 0:
            raise ValueError(
                f"lr={self.lr}, min_lr={self.min_lr}: expected 0 ≤ min_lr ≤ lr, lr > 0"
            )
        if not 0 <= self.momentum < 1 or (self.nesterov and self.momentum == 0):
            raise ValueError(f"momentum={self.momentum}: expected [0, 1), above 0 with nesterov")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay={self.weight_decay}: expected a number from 0 up")

    def build(self, classes: int) -> nn.Module:
        """The untrained model, its weights drawn from torch's global generator."""
        return build_classifier(self.model, classes, self.image_size)

    def train_transform(self) -> v2.Transform:
        """PIL RGB of any size → (3, image_size, image_size) float32, augmented.

        All randomness comes from torch's global CPU generator.
        """
        size = self.image_size
        if size <= SMALL:
            crop = [v2.Resize(size), v2.RandomCrop(size, padding=self.padding)]
        else:
            crop = [v2.RandomResizedCrop(size)]
        mirror = [v2.RandomHorizontalFlip()] if self.flip else []
        return v2.Compose([*crop, *mirror, *_to_tensor()])

    def test_transform(self) -> v2.Transform:
        """PIL RGB of any size → (3, image_size, image_size) float32: the centre of the image.

        Above 64 pixels the shorter side is first resized to 8/7 of image_size (256 for 224).
        """
        size = self.image_size
        shorter = size if size <= SMALL else round(size * 8 / 7)
        return v2.Compose([v2.Resize(shorter), v2.CenterCrop(size), *_to_tensor()])

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """Plain SGD over all parameters; set each step's rate from `learning_rate`."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )

    def learning_rate(self, step: int, steps: int) -> float:
        """Cosine annealing per step (Loshchilov & Hutter, 2017, without restarts).

        A function of the step alone, so nothing of it is kept in a checkpoint.
        step: 0 … steps - 1.
        """
        return cosine(self.lr, self.min_lr, step, steps)

    def dtype(self, device: torch.device) -> torch.dtype:
        """What the forward pass computes in on this device; parameters stay float32.

        Raises `ValueError` for float16 on a CPU, where its gradients would vanish.
        """
        return compute_dtype(self.precision, device)


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """From start, in steps 0 … steps - 1, down to close above end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What a precision means on this device; `ValueError` for float16 on a CPU."""
    if precision == "float16" and device.type != "cuda":
        raise ValueError("precision='float16' needs a GPU; use auto or float32 on the CPU")
    if precision != "auto":
        return _DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def check_precision(precision: str) -> None:
    """`ValueError` for a name that is none."""
    if precision not in ("auto", *_DTYPES):
        raise ValueError(f"precision={precision!r}: expected auto, {', '.join(_DTYPES)}")


def batch_loss(
    logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    """Mean cross-entropy, times the batch's mean weight: BlindCS Eq. 10, "the loss is scaled
    each batch by the mean w_i score" (not a per-sample weighted mean).

    logits: (b, c). label: (b,) int64. weight: (B,), the weights of the whole batch, of which
    (under data parallelism) these b rows may be one worker's share; None weighs all 1.
    Returns: a scalar.
    """
    loss = nn.functional.cross_entropy(logits.float(), label)
    return loss if weight is None else loss * weight.mean().item()


def own_loss(logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean over images of weight · cross-entropy, for weights that count the images each stands
    for, as CRAIG and GradMatch train.

    logits: (b, c). label: (b,) int64. weight: (b,). Returns: a scalar.
    """
    loss = nn.functional.cross_entropy(logits.float(), label, reduction="none")
    return (loss * weight.to(loss)).mean()


def _to_tensor() -> list[v2.Transform]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
