"""Networks that torchvision does not have, or has not for small images; all at random weights.

Each maps (b, 3, image_size, image_size) → (b, classes) logits.
"""

import torch
from torch import nn
from torchvision.models import vgg


def mlp(classes: int, image_size: int) -> nn.Module:
    """Two hidden layers of 128 on the pixels, as in DeepCore (Guo et al., 2022)."""
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(3 * image_size**2, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, classes),
    )


def lenet(classes: int, image_size: int) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling; from 16 pixels a side."""
    side = ((image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(16 * side**2, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, classes),
    )


def small_alexnet(classes: int, image_size: int) -> nn.Module:
    """AlexNet's five convolutions for CIFAR as in DeepCore: all at stride 1, three poolings that
    halve, one linear layer; from 8 pixels a side."""
    return nn.Sequential(
        *(nn.Conv2d(3, 128, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(192 * (image_size // 8) ** 2, classes),
    )


def small_vgg16(classes: int, image_size: int) -> nn.Module:
    """VGG-16's convolutions with batch normalisation, then one linear layer on their mean over the
    image, as in DeepCore; from 32 pixels a side."""
    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            _he(layer)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def wrn_16_8(classes: int, image_size: int) -> nn.Module:
    """The wide residual network of depth 16 and width 8, without dropout.

    Source: Zagoruyko and Komodakis (2016), Table 1 with N = 2, k = 8.
    """
    layers: list[nn.Module] = [_conv(3, 16, 3, 1)]
    channels = 16
    for width, stride in ((128, 1), (256, 2), (512, 2)):
        layers += [_WideBlock(channels, width, stride), _WideBlock(width, width, 1)]
        channels = width
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, classes))


class Enlarged(nn.Module):
    """A network made for larger images, shown small ones enlarged, bilinearly, to `size`."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(nn.functional.interpolate(images, self.size, mode="bilinear"))


class _WideBlock(nn.Module):
    """BN-ReLU-conv twice, 3 by 3, beside the identity, or where the shape changes beside a 1 by 1
    convolution of what the first BN-ReLU gives."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.layers = nn.Sequential(
            *(_conv(channels, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()),
            _conv(width, width, 3, 1),
        )
        same = channels == width and stride == 1
        self.shortcut = None if same else _conv(channels, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, channels, s, s) → (b, width, s / stride, s / stride)."""
        y = self.before(x)
        return self.layers(y) + (x if self.shortcut is None else self.shortcut(y))


def _conv(channels: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    return _he(nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False))


def _he(layer: nn.Conv2d) -> nn.Conv2d:
    """He initialisation as torchvision has it: fan-out, no bias."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
