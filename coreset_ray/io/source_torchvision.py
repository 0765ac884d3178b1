"""A torchvision classification dataset as a source, one running number a key."""

import difflib
import inspect
import operator
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from coreset_ray.io.shards import IMAGE_EXTENSIONS
from coreset_ray.io.source_png import png_bytes
from coreset_ray.io.source_sample import Sample, Source, Split, read_bytes

# What torchvision's classes call the two splits, the usual name first.
_SPLIT_WORDS = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val")}


def torchvision_samples(
    name: str,
    root: str | Path | None,
    split: Literal["train", "test"],
    *,
    download: bool = False,
) -> Iterator[Sample]:
    """The samples of one split of `open_torchvision`, in order. ValueError: no such split."""
    splits = open_torchvision(name, root, download=download).splits
    if split not in splits:
        raise ValueError(f"torchvision:{name} has no split {split!r}: choose from {list(splits)}")
    return iter(splits[split])


def open_torchvision(name: str, root: str | Path | None, *, download: bool = False) -> Source:
    """Train and test of `torchvision.datasets.<name>` as it lies in `root`.

    A class that knows no `train=` or `split=` is all train. A dataset of files in a usual image
    format keeps their bytes wherever its class lets a `loader` be chosen; others become PNG.

    ValueError: an unknown name (with the nearest ones), no root, data that is not there, items
    that are not (image, class index).
    """
    kind = _dataset_class(name)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    if "root" in parameters:
        if root is None:
            raise ValueError(f"torchvision:{name} needs root: the folder where its data lies")
        options["root"] = str(root)
    if "download" in parameters:
        options["download"] = download
    elif download:
        warnings.warn(f"torchvision:{name} cannot download: download is ignored", stacklevel=2)
    if "loader" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options |= _path_loader(kind, parameters)

    if "train" in parameters:
        datasets = {s: _open(kind, [options | {"train": s == "train"}]) for s in _SPLIT_WORDS}
    elif "split" in parameters:
        datasets = {
            split: _open(kind, [options | {"split": word} for word in words])
            for split, words in _SPLIT_WORDS.items()
        }
    else:
        datasets = {"train": _open(kind, [options])}
    splits = {s: Split(len(data), partial(_read, data, s)) for s, data in datasets.items()}
    return Source(splits, _class_names(datasets["train"]))


def _dataset_class(name: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise ValueError(f"source 'torchvision:{name}' needs torchvision: install it") from error
    kind = getattr(datasets, name, None)
    if isinstance(kind, type) and issubclass(kind, datasets.VisionDataset):
        return kind
    known = {known.lower(): known for known in datasets.__all__}
    near = [known[word] for word in difflib.get_close_matches(name.lower(), known)]
    remedy = f"did you mean {', '.join(near)}?" if near else "see torchvision.datasets for names"
    raise ValueError(f"torchvision has no dataset {name!r}: {remedy}")


def _path_loader(kind: Any, parameters: Any) -> dict[str, Any]:
    """Have the dataset hand out the path of an image in place of the decoded image."""
    from torchvision.datasets import DatasetFolder

    return {"loader": Path} if "loader" in parameters or issubclass(kind, DatasetFolder) else {}


def _open(kind: Any, attempts: list[dict[str, Any]]) -> Any:
    """The dataset from the first options whose split word it knows."""
    reasons: list[Exception] = []
    for options in attempts:
        try:
            return kind(**options)
        except (ValueError, TypeError, RuntimeError, OSError, ImportError) as error:
            reasons.append(error)
            if "Unknown value" not in str(error):
                break
    options = ", ".join(f"{key}={value!r}" for key, value in attempts[0].items() if key != "loader")
    raise ValueError(
        f"torchvision.datasets.{kind.__name__}({options}) does not open: {reasons[-1]}; check "
        "root, or allow download"
    ) from reasons[-1]


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Names by index, where the dataset has them; ImageNet's are tuples of synonyms."""
    names = getattr(dataset, "classes", None) or ()
    return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def _read(dataset: Any, split: str, i: int) -> Sample:
    key = f"{split}-{i:08d}"
    try:
        image, label = dataset[i]
        cls = str(operator.index(label)).encode()
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(
            f"item {i} of torchvision.datasets.{type(dataset).__name__} ({split}) is not a "
            f"readable pair (image, class index): {error}; choose a classification dataset"
        ) from error
    return Sample(key, {**_image_member(image), "cls": cls})


def _image_member(image: Any) -> dict[str, bytes]:
    from PIL import Image

    if not isinstance(image, Path):
        return {"png": png_bytes(image)}
    extension = image.suffix.removeprefix(".").lower()
    if extension in IMAGE_EXTENSIONS:
        return {extension: read_bytes(image)}
    with Image.open(image) as opened:
        return {"png": png_bytes(opened)}
