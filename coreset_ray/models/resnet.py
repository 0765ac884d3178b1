"""The ResNets that judge a coreset, from scratch: torchvision's, with a stem for small images."""

from torch import nn
from torchvision.models import resnet

MODELS = {"resnet18": resnet.resnet18, "resnet34": resnet.resnet34, "resnet50": resnet.resnet50}

SMALL = 64  # pixels a side; up to here the ImageNet stem would leave too little to look at


def build_resnet(name: str, classes: int, image_size: int) -> nn.Module:
    """A ResNet with random weights: (b, 3, image_size, image_size) → (b, classes) logits.

    He et al. (2016). Up to 64 pixels a side the stem is the CIFAR one (3-by-3 convolution,
    stride 1, no max-pool), as in the authors' code for BlindCS section 6.1; above, the
    ImageNet one (7-by-7, stride 2, max-pool). The weights come from torch's global generator.

    Raises `ValueError` for an unknown name.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r}: expected one of {', '.join(sorted(MODELS))}")
    model = MODELS[name](weights=None, num_classes=classes)
    if image_size <= SMALL:
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return model
