"""What an encoder is called, and what its library says about it; nothing is built or fetched."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlparse

LIBRARIES = ("torchvision", "timm", "open_clip")
MATCHES = ("names", "order")
PRETRAINED = "pretrained"  # the weights that `coreset-ray pretrain` made of the pool


@dataclass(frozen=True)
class EncoderSpec:
    """An image encoder: which network, whose weights, how large its input is.

    name: "torchvision:resnet18" (or "torchvision:resnet18/IMAGENET1K_V1" to pin the published
        weights), "timm:NAME" (NAME may carry a tag: "tf_efficientnet_lite0.in1k"), or
        "open_clip:MODEL/TAG" ("open_clip:ViT-L-14/openai").
    weights: None, the weights the library publishes, downloaded and cached by it; a file (.pth,
        .pt, .bin, .safetensors); "package:MODULE/relative/file.pth", a file that an installed
        package ships; or, in a configuration, "pretrained", what was learned from the pool itself.
    match: "names", the file's tensors carry the model's names, all of them (the classifier's do not
        matter); "order", they fit the model's, classifier included, one by one in order.
    input_size: pixels of the square input; None, what the library's description says.

    Raises ValueError for a malformed value; whether the model exists is checked when it is used.
    """

    name: str
    weights: str | None = None
    match: str = "names"
    input_size: int | None = None

    def __post_init__(self) -> None:
        library, _, model = self.name.partition(":")
        if library not in LIBRARIES or not model:
            raise ValueError(
                f"encoder {self.name!r}: its name must be LIBRARY:MODEL with LIBRARY one of "
                f"{', '.join(LIBRARIES)}{_nearest(library, LIBRARIES)}; "
                "for example torchvision:resnet18, timm:resnet50.a1_in1k, open_clip:ViT-L-14/openai"
            )
        if self.match not in MATCHES:
            raise ValueError(
                f"encoder {self.name!r}: match is {self.match!r}; use one of {', '.join(MATCHES)}"
            )
        if self.match == "order" and self.weights is None:
            raise ValueError(
                f"encoder {self.name!r}: match 'order' is for a weights file and there is none; "
                "set `weights` to a file or leave `match` out"
            )
        if self.weights == "":
            raise ValueError(
                f"encoder {self.name!r}: weights is empty; name a file or leave it out"
            )
        if self.input_size is not None and self.input_size < 1:
            raise ValueError(
                f"encoder {self.name!r}: input_size is {self.input_size}; "
                "it must be at least 1 pixel"
            )


def absolute(spec: EncoderSpec) -> EncoderSpec:
    """The spec with a local weights path that means the same in any working directory."""
    if spec.weights is None or spec.weights.startswith("package:") or "://" in spec.weights:
        return spec
    return replace(spec, weights=os.path.abspath(spec.weights))


@dataclass(frozen=True)
class Published:
    """What a library publishes under an encoder's name.

    tag: "" where the library has no description of any weights.
    file: the weights file, or Hub repository and file; "" where none is published.
    entry: the library's own description (WeightsEnum member, PretrainedCfg, or open_clip's dict).
    """

    library: str
    model: str
    tag: str
    file: str
    entry: Any

    @property
    def name(self) -> str:
        """The encoder's full name, with the tag that was meant where none was written."""
        joint = "." if self.library == "timm" else "/"
        return f"{self.library}:{self.model}{joint + self.tag if self.tag else ''}"


def published(spec: EncoderSpec) -> Published:
    """The library's description of `spec.name`. ValueError: no such model or tag."""
    library, _, model = spec.name.partition(":")
    find = {"torchvision": _torchvision, "timm": _timm, "open_clip": _open_clip}[library]
    return find(spec.name, model)


# The libraries take seconds to import; workers that only decode images never need them.


def _torchvision(name: str, model: str) -> Published:
    import torchvision

    model, _, tag = model.partition("/")
    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        raise _unknown_model(name, model, known, "torchvision.models.list_models()")
    choices: Any = torchvision.models.get_model_weights(model)
    if tag and tag not in choices.__members__:
        raise _unknown_tag(name, tag, choices.__members__)
    entry = choices[tag] if tag else choices.DEFAULT
    return Published("torchvision", model, entry.name, _basename(entry.url), entry)


def _timm(name: str, model: str) -> Published:
    import timm
    from timm.models import PretrainedCfg

    model, _, tag = model.partition(".")
    if not timm.is_model(model):
        raise _unknown_model(name, model, timm.list_models(), "timm.list_models()")
    tags = [full.partition(".")[2] for full in timm.list_models(model, include_tags=True)]
    if tag and tag not in tags:
        raise _unknown_tag(name, tag, tags)
    entry = timm.get_pretrained_cfg(f"{model}.{tag}" if tag else model) or PretrainedCfg()
    if entry.hf_hub_id:
        file = f"{entry.hf_hub_id}/{entry.hf_hub_filename or 'model.safetensors'}"
    else:
        file = _basename(entry.url or entry.file or "")
    return Published("timm", model, tag or entry.tag or "", file, entry)


def _open_clip(name: str, model: str) -> Published:
    import open_clip

    model, _, tag = model.partition("/")
    known = open_clip.list_models()
    if model not in known:
        raise _unknown_model(name, model, known, "open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag:
        raise ValueError(
            f"encoder {name!r}: open_clip needs the pretrained tag too (normalisation and "
            f"activation depend on it): write open_clip:{model}/TAG with TAG one of "
            f"{', '.join(tags) or '(none)'}"
        )
    entry = open_clip.get_pretrained_cfg(model, tag)
    if not entry:
        raise _unknown_tag(name, tag, tags)
    hub = entry.get("hf_hub", "")
    if hub.endswith("/"):
        hub += "open_clip_model.safetensors"
    tag = tag.lower().replace("-", "_")  # open_clip reads tags so: one name for one set of weights
    return Published("open_clip", model, tag, hub or _basename(entry.get("url", "")), entry)


def _basename(url: str | tuple[str, str]) -> str:
    if isinstance(url, tuple):  # timm: (url, file name)
        return url[1]
    return PurePosixPath(urlparse(url).path).name


def _nearest(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def _unknown_model(name: str, model: str, known: Iterable[str], listing: str) -> ValueError:
    return ValueError(
        f"encoder {name!r}: {name.partition(':')[0]} has no image model {model!r}"
        f"{_nearest(model, known)}; {listing} shows them all"
    )


def _unknown_tag(name: str, tag: str, tags: Iterable[str]) -> ValueError:
    known = ", ".join(tag for tag in tags if tag) or "(none)"
    return ValueError(f"encoder {name!r}: no published weights {tag!r}; there are: {known}")
