"""Weights files: finding them, reading them safely, and fitting their tensors to a model."""

import argparse
import hashlib
import importlib.util
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from coreset_ray.models.spec import EncoderSpec, Published

PACKAGE = "package:"
ROLES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


class WeightsUnavailable(ValueError):
    """The weights of an encoder cannot be had: no network, none published, or no such file."""


def unavailable(entry: Published, why: str) -> WeightsUnavailable:
    """The exception that names the encoder, the file to provide, and where to name it."""
    file = entry.file or "a file with its weights (the library publishes none)"
    return WeightsUnavailable(
        f"encoder {entry.name!r}: its weights cannot be had: {why}. Without network, fetch {file} "
        "elsewhere and name it in the configuration: `weights: PATH` of this encoder under "
        "embed.encoders"
    )


def weights_file(spec: EncoderSpec, entry: Published) -> Path | None:
    """The file `spec.weights` names, None for published weights. WeightsUnavailable: no such file.

    A package's file is found without importing the package.
    """
    if spec.weights is None:
        return None
    if spec.weights.startswith(PACKAGE):
        path = _packaged(spec.weights.removeprefix(PACKAGE), entry)
    else:
        path = Path(spec.weights).expanduser()
    if not path.is_file():
        raise unavailable(entry, f"weights {spec.weights!r} is not a file")
    return path


def _packaged(reference: str, entry: Published) -> Path:
    module, _, inside = reference.partition("/")
    # a dotted name would make find_spec import the parent; ".." would leave the package
    if not module.isidentifier() or not inside or ".." in PurePosixPath(inside).parts:
        raise ValueError(
            f"encoder {entry.name!r}: weights {PACKAGE + reference!r} must be "
            f"{PACKAGE}MODULE/relative/file.pth with MODULE a top-level package and no '..'"
        )
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise unavailable(
            entry, f"weights {PACKAGE + reference!r}: no package {module!r} installed"
        )
    return Path(next(iter(found.submodule_search_locations))) / inside


def sha256_of(path: Path) -> str:
    """The content's SHA-256, hexadecimal; read once in a process for as long as the file stays
    what it is."""
    told = path.stat()
    return _sha256(path, told.st_size, told.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> "OrderedDict[str, torch.Tensor]":
    """The state dict in a file, on the CPU; nothing but tensors and plain containers is unpickled.

    Found at the top, under "state_dict" or under "model"; "module." (DataParallel) and "_orig_mod."
    (torch.compile) before every name are removed. ValueError: anything else.
    """
    content = _read(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = OrderedDict(
        (name, value)
        for name, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, torch.Tensor)
    )
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
        raise ValueError(
            f"weights file {path}: no state dict at the top, under 'state_dict' or under 'model' "
            f"({type(content).__name__} {keys}); save it with torch.save(model.state_dict(), PATH)"
        )
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = OrderedDict((name.removeprefix(prefix), v) for name, v in tensors.items())
    # layers that changed their layout read the version here; a wrapper that dropped it means "now"
    if getattr(content, "_metadata", None) is not None and set(content) == set(tensors):
        tensors._metadata = content._metadata  # pyright: ignore
    return tensors


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device="cpu")
        # timm's training checkpoints carry their arguments: a Namespace holds values, runs nothing
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights file {path}: not read, it holds more than tensors (or is no torch file) and "
            "unpickling that could run code; save it anew with torch.save(model.state_dict(), PATH)"
        ) from error
    except Exception as error:
        script = "TorchScript" in str(error)
        remedy = (
            "it is a TorchScript archive; if you trust it, convert it: "
            "torch.save(torch.jit.load(OLD, map_location='cpu').state_dict(), NEW)"
            if script
            else "it cannot be read; is it complete, and a .pth, .pt, .bin or .safetensors file?"
        )
        raise ValueError(f"weights file {path}: {remedy}") from error


def write_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The content of a .safetensors file that `read_tensors` reads."""
    from safetensors.torch import save

    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def in_order(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, path: Path
) -> "OrderedDict[str, torch.Tensor]":
    """The tensors under the model's names, first to first. ValueError: names the first misfit.

    Beyond the shapes, the last word of both names must agree where both are usual ones: a batch
    norm's four vectors have one shape, and swapped they would load in silence.
    """
    wanted = model.state_dict()
    for position, ((theirs, tensor), (ours, target)) in enumerate(
        zip(tensors.items(), wanted.items(), strict=False)
    ):
        roles = {theirs.rpartition(".")[2], ours.rpartition(".")[2]}
        if tensor.shape != target.shape or (len(roles) == 2 and roles <= ROLES):
            raise ValueError(
                f"weights file {path}: by order, tensor {position} is {theirs} "
                f"{tuple(tensor.shape)} and the model has {ours} {tuple(target.shape)} there"
            )
    if len(tensors) != len(wanted):
        raise ValueError(
            f"weights file {path}: by order, it has {len(tensors)} tensors "
            f"and the model {len(wanted)}"
        )
    return OrderedDict(zip(wanted, tensors.values(), strict=True))


def load_tensors(
    model: nn.Module, tensors: "OrderedDict[str, torch.Tensor]", origin: object
) -> None:
    """Strict load_state_dict; ValueError names the first tensors that are wrong.

    Batch norm's step counters may be missing (old files): nothing depends on them here.
    """
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, value)
    if getattr(tensors, "_metadata", None) is None:
        tensors._metadata = wanted._metadata  # pyright: ignore
    try:
        model.load_state_dict(tensors, strict=True)
    except (RuntimeError, AssertionError) as error:
        missing = [name for name in wanted if name not in tensors]
        extra = [name for name in tensors if name not in wanted]
        shapes = [
            f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wanted
            if name in tensors and tensors[name].shape != wanted[name].shape
        ]
        parts = {"wrong shape": shapes, "missing": missing, "not of this model": extra}
        listed = "; ".join(
            f"{label} ({len(names)}): {', '.join(names[:3])}"
            for label, names in parts.items()
            if names
        )
        raise ValueError(
            f"weights file {origin} does not fit the model: {listed or error}"
        ) from error
