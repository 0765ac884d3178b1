"""Images to embeddings: one or several pretrained networks side by side.

spec = EncoderSpec("open_clip:ViT-L-14/openai")
prepare = preprocess_of(spec)                      # on CPU workers: PIL image -> uint8
encode = Encoder([spec], device="cuda")            # on the accelerator: uint8 -> features
embeddings = encode([np.stack([prepare(image) for image in images])])
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from coreset_ray.models.networks import load_model, load_with_width
from coreset_ray.models.preprocess import Preprocess, preprocess_of
from coreset_ray.models.spec import EncoderSpec, published
from coreset_ray.models.weights import WeightsUnavailable, sha256_of, unavailable, weights_file

__all__ = [
    "Encoder",
    "EncoderSpec",
    "Preprocess",
    "WeightsUnavailable",
    "describe",
    "load_model",
    "preprocess_of",
]

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class Encoder:
    """Features of one or several encoders, concatenated in the order of `specs`.

    device: "cpu", "cuda", "cuda:1", ...
    precision: of the networks' arithmetic (autocast; the weights stay float32). "auto" is float32
        on the CPU and bfloat16 on CUDA, float16 where the GPU has no bfloat16.

    width: M, the sum of the encoders' widths. precision_: what "auto" became.
    Raises ValueError: no specs, an unknown precision, a device that is not there, and whatever
    `load_model` raises.
    """

    def __init__(
        self, specs: Sequence[EncoderSpec], *, device: str = "cpu", precision: str = "auto"
    ) -> None:
        if not specs:
            raise ValueError("no encoders given; name at least one, under embed.encoders")
        self.specs = tuple(specs)
        self.device = _device(device)
        self.precision_ = _precision(precision, self.device)
        self.preprocess = tuple(preprocess_of(spec) for spec in self.specs)
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        self._layout = layout
        self._models = []
        self.widths: tuple[int, ...] = ()
        for spec in self.specs:
            model, width = _load(spec)
            self._models.append(model.to(device=self.device, memory_format=layout))  # pyright: ignore
            self.widths += (width,)
        self.width = sum(self.widths)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """One (n, S, S, 3) uint8 array per spec (`preprocess_of(spec)`'s) -> (n, M) float32.

        Encoders of equal preprocessing may be given the same array; it is moved once.
        A row may hold NaN or infinity, where the precision overflowed or the weights are broken.
        Raises ValueError: arrays of another number, shape or type.
        """
        self._check(images)
        n = len(images[0])
        answer = np.empty((n, self.width), dtype=np.float32)
        if n == 0:
            return answer
        ready: dict[tuple[int, Preprocess], torch.Tensor] = {}
        start = 0
        for prepare, model, array, width in zip(
            self.preprocess, self._models, images, self.widths, strict=True
        ):
            key = (id(array), prepare)
            if key not in ready:
                ready[key] = self._tensor(array, prepare)
            features = self._forward(model, ready[key])
            answer[:, start : start + width] = features.cpu().numpy()
            start += width
        return answer

    def _forward(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if self.precision_ == "float32":
            return model(batch).float()
        dtype = getattr(torch, self.precision_)
        with torch.autocast(self.device.type, dtype=dtype):
            return model(batch).float()

    def _tensor(self, array: np.ndarray, prepare: Preprocess) -> torch.Tensor:
        # shared memory (Ray, Arrow) is read-only and torch warns of that: copy such arrays
        pixels = torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)
        return prepare.normalise(pixels).contiguous(memory_format=self._layout)

    def _check(self, images: Sequence[np.ndarray]) -> None:
        if len(images) != len(self.specs):
            raise ValueError(
                f"{len(images)} arrays of images for {len(self.specs)} encoders; give one for each"
            )
        n = len(images[0])
        for spec, prepare, array in zip(self.specs, self.preprocess, images, strict=True):
            wanted = (n, prepare.size, prepare.size, 3)
            if array.shape != wanted or array.dtype != np.uint8:
                raise ValueError(
                    f"encoder {spec.name!r}: images are {array.dtype} {array.shape}, not uint8 "
                    f"{wanted}; prepare them with preprocess_of(spec)"
                )


def _load(spec: EncoderSpec) -> tuple[torch.nn.Module, int]:
    try:
        return load_with_width(spec)
    except ValueError as error:
        if str(error).startswith("encoder "):
            raise
        raise ValueError(f"encoder {spec.name!r}: {error}") from error


def describe(spec: EncoderSpec) -> dict[str, Any]:
    """What determines the encoder's answer, JSON-able and free of paths, for a content hash.

    The weights are the library's tag and file name, or the SHA-256 of the file's content.
    Raises as `load_model`, but nothing is downloaded: published weights may still be unavailable.
    """
    entry = published(spec)
    file = weights_file(spec, entry)
    if file is None and not entry.file:
        raise unavailable(entry, "its library publishes none")
    source = {"tag": entry.tag, "file": entry.file} if file is None else {"sha256": sha256_of(file)}
    return {
        "name": entry.name,
        "weights": source,
        "match": spec.match,
        "preprocess": preprocess_of(spec).describe(),
    }


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: {error}; use cpu, cuda or cuda:N") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {name!r}: torch sees {count} CUDA devices here; use device cpu")
    return device


def _precision(name: str, device: torch.device) -> str:
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r}; use one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
