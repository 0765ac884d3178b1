"""From a decoded image to what an encoder expects, in two steps.

The geometry (resize, crop) happens on CPU workers and ends in uint8: a quarter of the bytes of
float32 to move. The normalisation happens on the encoder's device. Together they give, bit for bit,
what the transform of the encoder's own library gives for an RGB image.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from coreset_ray.models.spec import EncoderSpec, Published, published

if TYPE_CHECKING:
    import torch

EDGES = ("shortest", "longest", "squash")
MAX_PIXELS = 100_000_000  # of a resized image: 300 MB; only a very thin image gets there


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop (padding where the image is smaller), and what to normalise with.

    size: pixels of the square result.
    mean, std: per channel, of values in [0, 1].
    resize: pixels of the edge that `edge` names: the "shortest" one (the other keeps the aspect
        ratio and the crop loses its ends), the "longest" one (the rest is padded with `fill`), or
        both ("squash").
    interpolation: a PIL filter: nearest, bilinear, bicubic, lanczos, box, hamming.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    edge: str = "shortest"
    interpolation: str = "bilinear"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        assert self.edge in EDGES and self.resize >= 1 and self.size >= 1, self

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The image as (size, size, 3) uint8; converted to RGB first.

        ValueError: the image is so thin that keeping its aspect ratio would take over 10^8 pixels.
        """
        image = image.convert("RGB")
        shape = self._resized(*image.size)
        if shape[0] * shape[1] > MAX_PIXELS:
            raise ValueError(
                f"image of {image.width}x{image.height} pixels: resized for the encoder it "
                f"would be {shape[0]}x{shape[1]}; leave it out or crop it before"
            )
        image = image.resize(shape, Image.Resampling[self.interpolation.upper()])
        return np.asarray(self._cropped(image))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, size, size, 3) uint8 on any device -> (n, 3, size, size) float32 there."""
        values = pixels.permute(0, 3, 1, 2).float().contiguous().div_(255)
        mean = values.new_tensor(self.mean).view(1, 3, 1, 1)
        std = values.new_tensor(self.std).view(1, 3, 1, 1)
        return values.sub_(mean).div_(std)

    def describe(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize; rounded as torchvision (shortest) and timm do."""
        if self.edge == "squash":
            return self.resize, self.resize
        if self.edge == "longest":
            ratio = max(width, height) / self.resize
            return round(width / ratio), round(height / ratio)
        long = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, long) if width <= height else (long, self.resize)

    def _cropped(self, image: Image.Image) -> Image.Image:
        """Centred on a square of `size`; the odd pixel of padding goes right and below."""
        missing = max(self.size - image.width, 0), max(self.size - image.height, 0)
        if any(missing):
            padded = (image.width + missing[0], image.height + missing[1])
            canvas = Image.new("RGB", padded, self.fill)
            canvas.paste(image, (missing[0] // 2, missing[1] // 2))
            image = canvas
        left = round((image.width - self.size) / 2)
        top = round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


def preprocess_of(spec: EncoderSpec) -> Preprocess:
    """The preprocessing the library describes for the encoder; no model is built.

    `spec.input_size` scales resize and crop together, keeping the library's ratio between them.
    ValueError: unknown model or tag, or an input that is not square.
    """
    entry = published(spec)
    read = {"torchvision": _torchvision, "timm": _timm, "open_clip": _open_clip}[entry.library]
    return read(entry, spec.input_size)


def _torchvision(entry: Published, input_size: int | None) -> Preprocess:
    preset = entry.entry.transforms()
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    size = input_size or crop
    return Preprocess(
        size=size,
        mean=_triple(preset.mean),
        std=_triple(preset.std),
        resize=resize if size == crop else max(size, round(resize * size / crop)),
        interpolation=preset.interpolation.value,
    )


def _timm(entry: Published, input_size: int | None) -> Preprocess:
    from timm.data import resolve_data_config  # pyright: ignore[reportPrivateImportUsage]

    args = {} if input_size is None else {"input_size": (3, input_size, input_size)}
    config = resolve_data_config(args, pretrained_cfg=entry.entry.to_dict())
    mean = _triple(config["mean"])
    size = _square(entry, config["input_size"][1:])
    edge = {"squash": "squash", "border": "longest"}.get(config["crop_mode"], "shortest")
    fill = [round(255 * value) for value in mean] if edge == "longest" else [0, 0, 0]
    return Preprocess(
        size=size,
        mean=mean,
        std=_triple(config["std"]),
        resize=math.floor(size / config["crop_pct"]),
        edge=edge,
        interpolation=config["interpolation"],
        fill=(fill[0], fill[1], fill[2]),
    )


def _open_clip(entry: Published, input_size: int | None) -> Preprocess:
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    vision = (open_clip.get_model_config(entry.model) or {})["vision_cfg"]
    merged = merge_preprocess_dict(PreprocessCfg(), entry.entry)
    config = PreprocessCfg(**{**merged, "size": input_size or vision.get("image_size", 224)})
    size = _square(entry, config.input_size[1:])
    return Preprocess(
        size=size,
        mean=_triple(config.mean),
        std=_triple(config.std),
        resize=size,
        edge=config.resize_mode,
        # open_clip itself knows these two and takes any other for bicubic
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        fill=(config.fill_color, config.fill_color, config.fill_color),
    )


def _square(entry: Published, shape: tuple[int, ...]) -> int:
    height, width = shape
    if height != width:
        raise ValueError(
            f"encoder {entry.name!r}: its input is {height}x{width} pixels; only square inputs are "
            "supported, set input_size or choose another encoder"
        )
    return height


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
