"""Building an encoder's network without weights, to be trained on the pool."""

from collections import OrderedDict

import torch
from torch import nn

from coreset_ray.models.networks import width_of, without_head
from coreset_ray.models.preprocess import preprocess_of
from coreset_ray.models.spec import EncoderSpec, Published, published


def build_untrained(spec: EncoderSpec) -> tuple[nn.Module, int]:
    """The same network with weights drawn from torch's global generator, for training, and M.
    What it learns loads into `load_model` by name; `spec.weights` is not read.

    Raises `ValueError` for open_clip, whose networks learn from captions, for a network whose
    tensors depend on the size of its input where that is not its own, and for one that answers
    with more than features while it trains.
    """
    entry = published(spec)
    model = _untrained(spec, entry)
    width = width_of(model.eval(), spec)
    model.train()
    size = preprocess_of(spec).size
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = OrderedDict((k, v.clone()) for k, v in model.state_dict().items())
        if not isinstance(model(torch.zeros(2, 3, size, size)), torch.Tensor):
            raise ValueError(
                f"encoder {spec.name!r}: it has auxiliary classifiers, which need labels; choose "
                "another one to train on the pool"
            )
        model.load_state_dict(before)  # batch normalisation has seen the blank images
    return model, width


def _untrained(spec: EncoderSpec, entry: Published) -> nn.Module:
    if entry.library == "torchvision":
        import torchvision

        options = {"init_weights": True} if entry.model in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(entry.model, weights=None, **options)
        without_head(model)
        return model
    if entry.library == "timm":
        import timm

        own = entry.entry
        if spec.input_size not in (None, own.input_size[-1]) and own.fixed_input_size:
            raise ValueError(
                f"encoder {spec.name!r}: to be trained on the pool it takes input of "
                f"{own.input_size[-1]} pixels alone; leave input_size out, or choose a "
                "convolutional network"
            )
        return timm.create_model(entry.name.removeprefix("timm:"), pretrained=False, num_classes=0)
    raise ValueError(
        f"encoder {spec.name!r}: weights 'pretrained' are for torchvision's and timm's networks; "
        "open_clip's learn from captions"
    )
