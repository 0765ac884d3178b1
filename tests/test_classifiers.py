"""The networks that judge a coreset: shapes, gradients, sizes that were published, and dropout."""

import numpy as np
import pytest
import torch
from torch import nn

from coreset_ray.distributed.train_loop import _epoch_seed
from coreset_ray.models.classifiers import CLASSIFIERS, build_classifier
from coreset_ray.models.recipe import Recipe

# Millions of parameters at 10 classes on 32 x 32 pixels, by the papers or by counting their tables.
SMALL = {
    "resnet18": 11.17,
    "resnet34": 21.28,
    "resnet50": 23.52,
    "mlp": (3072 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10) / 1e6,
    "lenet": (61_706 + 2 * 6 * 25) / 1e6,  # LeCun's with 10 outputs, on three colours
    "alexnet": 1.87,
    "vgg16": 14.73,
    "inception_v3": 21.81,
    "wrn_16_8": 10.96,  # Zagoruyko and Komodakis (2016), Table 4: 11.0
    "mobilenet_v3_small": 1.53,
}
# At 1,000 classes on 224 x 224, as torchvision's documentation has them; Inception's less the 3.33
# of its auxiliary classifier.
LARGE = {
    "resnet18": 11.69,
    "alexnet": 61.10,
    "vgg16": 138.37,
    "inception_v3": 23.83,
    "mobilenet_v3_small": 2.54,
}
SIZED = [
    *((name, 32, 10, millions) for name, millions in SMALL.items()),
    *((name, 224, 1000, millions) for name, millions in LARGE.items()),
]
LEAST = {"lenet": 16, "vgg16": 32}  # pixels a side; others take 8


def built(name: str, size: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(name, 10, size)


def shape(name: str, size: int) -> tuple[int, ...]:
    """Of the logits, found without computing any."""
    with torch.device("meta"):
        return build_classifier(name, 7, size).eval()(torch.zeros(2, 3, size, size)).shape


def test_every_network_is_here() -> None:
    assert set(SMALL) == set(CLASSIFIERS)


@pytest.mark.parametrize(("name", "size", "classes", "millions"), SIZED)
def test_has_as_many_parameters_as_published(
    name: str, size: int, classes: int, millions: float
) -> None:
    with torch.device("meta"):
        model = build_classifier(name, classes, size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    "name",
    [
        *("mlp", "lenet", "alexnet", "vgg16", "wrn_16_8", "mobilenet_v3_small"),
        pytest.param("inception_v3", marks=pytest.mark.slow),
    ],
)
def test_gives_logits_and_gradients(name: str) -> None:
    size = LEAST.get(name, 8)
    model = built(name, size).train()
    logits = model(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (2, 10) and logits.std() > 0
    nn.functional.cross_entropy(logits, torch.tensor([3, 7])).backward()
    for place, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), place


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_takes_images_of_every_size_from_the_smallest(name: str) -> None:
    for size in (LEAST.get(name, 8), 33, 65, 75):
        assert shape(name, size) == (2, 7)


@pytest.mark.parametrize("name", ["mlp", "lenet", "wrn_16_8", "mobilenet_v3_small"])
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    one, same, other = (built(name, 16, seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_small_images_are_seen_as_finely_as_by_the_resnets() -> None:
    """The last stage of each has 4 by 4 places for CIFAR's 32 by 32 pixels."""
    seen = []
    with torch.device("meta"):
        for name, last in (("mobilenet_v3_small", "features"), ("resnet18", "layer4")):
            model = build_classifier(name, 10, 32).eval()
            model.get_submodule(last).register_forward_hook(lambda *given: seen.append(given[2]))
            model(torch.zeros(1, 3, 32, 32))
    assert [features.shape[2:] for features in seen] == [(4, 4), (4, 4)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"model": "vgg11"}, "model='vgg11': expected one of alexnet, inception_v3, lenet, mlp"),
        ({"model": "vgg16", "image_size": 31}, "image_size=31: vgg16 needs at least 32"),
        ({"model": "lenet", "image_size": 15}, "image_size=15: lenet needs at least 16"),
    ],
)
def test_what_cannot_be_built_is_refused(how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**how)
    with pytest.raises(ValueError, match=message):
        build_classifier(how["model"], 10, how.get("image_size", 32))


def test_dropout_is_a_function_of_seed_epoch_and_worker() -> None:
    seeds = [_epoch_seed(*place) for place in np.ndindex(3, 20, 4)]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < 2**53 for s in seeds)
    assert seeds == [_epoch_seed(*place) for place in np.ndindex(3, 20, 4)]
