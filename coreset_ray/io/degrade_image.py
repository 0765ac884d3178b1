"""What the web does to an image: crops, resizes, colour shifts, JPEG; and images of nothing."""

import io

import numpy as np
from PIL import Image, ImageEnhance

from coreset_ray.io.source_png import png_bytes

CHANGES = ("crop", "resize", "color", "jpeg")  # in the order in which two are applied
_RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
_JPEG_QUALITY = 95  # where the change itself is not a JPEG of lower quality


def draw_changes(rng: np.random.Generator, exact: float, composed: float) -> tuple[str, ...]:
    """The changes of one copy, none for the same bytes. exact, composed: as in `Degrade`."""
    if rng.random() < exact:
        return ()
    count = 2 if rng.random() < composed else 1
    return tuple(CHANGES[i] for i in sorted(rng.choice(len(CHANGES), count, replace=False)))


def changed(
    image: Image.Image, extension: str, changes: tuple[str, ...], rng: np.random.Generator
) -> tuple[str, bytes]:
    """Extension and bytes of the image after the changes: JPEG where it was JPEG or becomes it,
    else PNG. image: RGB; extension: of the original."""
    if "crop" in changes:
        image = image.crop(_box(image.size, rng))
    if "resize" in changes:
        image = _resized(image, rng)
    if "color" in changes:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(rng.uniform(0.7, 1.3))
    if "jpeg" in changes:
        return "jpg", _jpeg(image, int(rng.integers(20, 81)))
    if extension in ("jpg", "jpeg"):
        return extension, _jpeg(image, _JPEG_QUALITY)
    return "png", png_bytes(image)


def blank(size: tuple[int, int], rng: np.random.Generator) -> tuple[str, bytes]:
    """An image of one colour: black, white, or any. size: width and height."""
    colors = [(0, 0, 0), (255, 255, 255), tuple(rng.integers(0, 256, 3).tolist())]
    image = Image.new("RGB", size, colors[rng.integers(len(colors))])
    return "jpg", _jpeg(image, _JPEG_QUALITY)


def noise(size: tuple[int, int], rng: np.random.Generator) -> tuple[str, bytes]:
    """An image of independent random pixels. size: width and height."""
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return "jpg", _jpeg(Image.fromarray(pixels), _JPEG_QUALITY)


def _box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box somewhere in the image that keeps 60 to 95% of its area, up to rounding; the sides
    shrink by different factors, neither below 1."""
    area = rng.uniform(0.6, 0.95)
    across = area ** rng.uniform(0, 1)
    width, height = (
        max(1, round(side * share))
        for side, share in zip(size, (across, area / across), strict=True)
    )
    left = int(rng.integers(0, size[0] - width + 1))
    top = int(rng.integers(0, size[1] - height + 1))
    return left, top, left + width, top + height


def _resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    scale = rng.uniform(0.4, 0.9)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, _RESAMPLING[rng.integers(len(_RESAMPLING))])


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()
