"""Building an encoder's network with its weights, so that it answers with features.

Weights are always loaded strictly and without unpickling objects; a network is never left with
random weights. The classifier goes: `match: names` ignores it in the file (a fine-tuned one of
another size, or none, does not matter), `match: order` counts it.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coreset_ray.models.preprocess import preprocess_of
from coreset_ray.models.spec import EncoderSpec, Published, published
from coreset_ray.models.weights import (
    in_order,
    load_tensors,
    read_tensors,
    unavailable,
    weights_file,
)

# What torchvision sets for these two with published weights; and no slow random initial values.
GOOGLE = {"transform_input": True, "init_weights": False}


def load_model(spec: EncoderSpec) -> nn.Module:
    """The network in eval mode on the CPU: (n, 3, S, S) normalised float32 -> (n, M) features.

    S is `preprocess_of(spec).size`. Features are what the last layer, the classifier, would see
    (torchvision, timm: pooled), or the image embedding before its L2 normalisation (open_clip).
    Raises WeightsUnavailable (weights cannot be had), ValueError (unknown model or tag, a file that
    does not fit, an input size the network does not take).
    """
    return load_with_width(spec)[0]


def load_with_width(spec: EncoderSpec) -> tuple[nn.Module, int]:
    """`load_model` and M, found by running one blank image."""
    entry = published(spec)
    file = weights_file(spec, entry)
    if file is None and not entry.file:
        raise unavailable(entry, "its library publishes none")
    load = {"torchvision": _torchvision, "timm": _timm, "open_clip": _open_clip}[entry.library]
    with torch.random.fork_rng(devices=[]):  # initial values, overwritten, must not cost randomness
        model = load(spec, entry, file).eval().requires_grad_(False)
    return model, width_of(model, spec)


def width_of(model: nn.Module, spec: EncoderSpec) -> int:
    size = preprocess_of(spec).size
    try:
        with torch.inference_mode():
            features = model(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"encoder {spec.name!r}: it does not take input of {size}x{size} pixels ({error}); "
            "change input_size, or leave it out for the size it was made for"
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        shape = tuple(getattr(features, "shape", ()))
        raise ValueError(
            f"encoder {spec.name!r}: it answers one image with {type(features).__name__} {shape}, "
            "not with one row of features; choose another encoder"
        )
    return features.shape[1]


def _torchvision(spec: EncoderSpec, entry: Published, file: Path | None) -> nn.Module:
    import torchvision

    options: dict[str, Any] = GOOGLE if entry.model in ("googlenet", "inception_v3") else {}
    if entry.model.startswith("vit_"):
        options = {"image_size": entry.entry.transforms().crop_size[0]}
    model = torchvision.models.get_model(entry.model, weights=None, **options)
    if file is None:
        try:
            state = entry.entry.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
        except Exception as error:
            raise unavailable(entry, _said(error)) from error
    else:
        state = _from_file(spec, file, model)
    if entry.model.startswith("densenet"):
        state = _modern_densenet(state)
    head = without_head(model)
    load_tensors(model, _without(state, {f"{head}.weight", f"{head}.bias"}), file or entry.file)
    return model


def without_head(model: nn.Module) -> str:
    """The name of torchvision's classifier, which an identity replaces."""
    head = [
        name
        for name, layer in model.named_modules()
        if 1000 in (getattr(layer, "out_features", 0), getattr(layer, "out_channels", 0))
    ][-1]
    model.set_submodule(head, nn.Identity())
    return head


def _modern_densenet(state: "OrderedDict[str, Any]") -> "OrderedDict[str, Any]":
    """Published DenseNets still say `denselayer1.norm.1`; torchvision renames it as it loads."""
    renamed = OrderedDict(
        (
            name.replace("norm.", "norm").replace("conv.", "conv")
            if "denselayer" in name
            else name,
            v,
        )
        for name, v in state.items()
    )
    return renamed


def _timm(spec: EncoderSpec, entry: Published, file: Path | None) -> nn.Module:
    import timm

    name = entry.name.removeprefix("timm:")
    if file is None:
        try:
            model: Any = timm.create_model(name, pretrained=True)  # strict, with its classifier
        except Exception as error:
            raise unavailable(entry, _said(error)) from error
        model.reset_classifier(0)
    else:
        model = timm.create_model(name, pretrained=False)
        state = _from_file(spec, file, model)
        names = set(model.state_dict())
        model.reset_classifier(0)
        load_tensors(model, _without(state, names - set(model.state_dict())), file)
    own = entry.entry
    if (
        spec.input_size is not None
        and own.fixed_input_size
        and tuple(own.input_size[1:]) != (spec.input_size, spec.input_size)
        and hasattr(model, "set_input_size")
    ):
        model.set_input_size(img_size=(spec.input_size, spec.input_size))  # resamples positions
    return model


def _open_clip(spec: EncoderSpec, entry: Published, file: Path | None) -> nn.Module:
    import open_clip
    from open_clip.convert import convert_state_dict
    from open_clip.model import resize_pos_embed

    if file is None:
        try:
            file = Path(open_clip.download_pretrained(entry.entry))
        except Exception as error:
            raise unavailable(entry, _said(error)) from error
    with _quiet():  # "initialized randomly": for the moment it is
        clip: Any = open_clip.create_model(
            entry.model,
            pretrained=None,
            force_quick_gelu=entry.entry.get("quick_gelu", False),
            force_image_size=spec.input_size,
            pretrained_text=False,
        )
    state = convert_state_dict(clip, _from_file(spec, file, clip))
    resize_pos_embed(state, clip)
    visual = OrderedDict(
        (name.removeprefix("visual."), value)
        for name, value in state.items()
        if name.startswith("visual.")
    )
    if not visual:
        raise ValueError(
            f"weights file {file}: no tensor named visual.*; for open_clip, the state dict of the "
            "whole CLIP model is needed"
        )
    load_tensors(clip.visual, visual, file)
    return ImageTower(clip.visual)


class ImageTower(nn.Module):
    """The image half of a CLIP model; CoCa's answers with its tokens too, and they are left out."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n, M)."""
        features = self.visual(images)
        return features[0] if isinstance(features, tuple) else features


def _from_file(spec: EncoderSpec, file: Path, model: nn.Module) -> "OrderedDict[str, Any]":
    tensors = read_tensors(file)
    return in_order(tensors, model, file) if spec.match == "order" else tensors


def _without(state: "OrderedDict[str, Any]", names: set[str]) -> "OrderedDict[str, Any]":
    kept = OrderedDict((name, value) for name, value in state.items() if name not in names)
    kept._metadata = getattr(state, "_metadata", None)  # pyright: ignore
    return kept


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
