"""The networks that judge a coreset, by name: torchvision's where it has them, from scratch.

Up to 64 pixels a side those made for ImageNet are adapted, as their stems would leave too little to
look at; above, they are torchvision's own.
"""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision import models

from coreset_ray.models import small_networks as small
from coreset_ray.models.resnet import MODELS, SMALL, build_resnet

_SMALLEST_INCEPTION = 75  # pixels a side; below, its last stage has nothing to look at


def build_classifier(name: str, classes: int, image_size: int) -> nn.Module:
    """Random weights from torch's global generator: (b, 3, image_size, image_size) → (b, classes)
    logits.

    Raises `ValueError` for an unknown name and for images smaller than the network takes.
    """
    check_classifier(name, image_size)
    return CLASSIFIERS[name](classes, image_size)


def check_classifier(name: str, image_size: int) -> None:
    """`ValueError` for an unknown name and for images smaller than the network takes."""
    if name not in CLASSIFIERS:
        raise ValueError(f"model={name!r}: expected one of {', '.join(sorted(CLASSIFIERS))}")
    if image_size < (least := _LEAST.get(name, 0)):
        raise ValueError(
            f"image_size={image_size}: {name} needs at least {least}; raise it, or take another "
            "model"
        )


def _alexnet(classes: int, image_size: int) -> nn.Module:
    """Krizhevsky et al. (2012); torchvision's is Krizhevsky (2014)."""
    if image_size <= SMALL:
        return small.small_alexnet(classes, image_size)
    return models.alexnet(weights=None, num_classes=classes)


def _vgg16(classes: int, image_size: int) -> nn.Module:
    """Simonyan and Zisserman (2015), with batch normalisation."""
    if image_size <= SMALL:
        return small.small_vgg16(classes, image_size)
    return models.vgg16_bn(weights=None, num_classes=classes)


def _inception_v3(classes: int, image_size: int) -> nn.Module:
    """Szegedy et al. (2016), without its auxiliary classifier. Images below 75 pixels a side are
    enlarged four times (CIFAR's to 128), at least to 75."""
    network = models.inception_v3(
        weights=None, num_classes=classes, aux_logits=False, init_weights=True
    )
    if image_size >= _SMALLEST_INCEPTION:
        return network
    return small.Enlarged(network, max(4 * image_size, _SMALLEST_INCEPTION))


def _mobilenet_v3_small(classes: int, image_size: int) -> nn.Module:
    """Howard et al. (2019); for small images the first two convolutions that would halve them do
    not, so that it sees them four times finer, as the ResNets do."""
    network = models.mobilenet_v3_small(weights=None, num_classes=classes)
    if image_size <= SMALL:
        convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
        halving = [m for m in convolutions if m.stride == (2, 2)]
        for layer in halving[:2]:
            layer.stride = (1, 1)
    return network


CLASSIFIERS: dict[str, Callable[[int, int], nn.Module]] = {
    **{name: partial(build_resnet, name) for name in MODELS},
    "mlp": small.mlp,
    "lenet": small.lenet,
    "alexnet": _alexnet,
    "vgg16": _vgg16,
    "inception_v3": _inception_v3,
    "wrn_16_8": small.wrn_16_8,
    "mobilenet_v3_small": _mobilenet_v3_small,
}
_LEAST = {"lenet": 16, "vgg16": 32}  # pixels a side that leave one to the last layer
