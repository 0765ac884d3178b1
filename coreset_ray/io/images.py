"""Image bytes from anywhere → an upright RGB image, or a reason why not."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Only these decoders ever see bytes from a shard, whatever a file is called.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")


class BadImage(Exception):
    """Bytes that give no image; the message is the reason."""


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """The image, turned upright by its EXIF orientation, in RGB.

    The first frame of an animation; 16 bits are scaled to 8; alpha is dropped, as by torchvision,
    timm and open_clip, on whose images the encoders were trained.
    Raises `BadImage` for bytes that are no image, end early, or promise over `max_pixels`
    (checked before any pixel is decoded).
    """
    if not data:
        raise BadImage("zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd files; we judge by the outcome
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(f"{width} × {height} pixels, more than max_pixels = {max_pixels}")
            image.load()
            return _eight_bits(_upright(image)).convert("RGB")
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        # Pillow refuses on its own, also where max_pixels is higher than its limit.
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise BadImage(f"more than {limit} pixels") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"not an image of a known format ({', '.join(_FORMATS)})") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on bytes from the web
        raise BadImage(f"{type(error).__name__}: {error}"[:200].replace("\n", " ")) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned by its EXIF orientation; as it is where the EXIF data are broken."""
    try:
        image.getexif()
    except MemoryError:
        raise
    except Exception:  # of whatever kind Pillow's parser raises; the pixels are whole
        return image
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey would be clipped, not scaled, by a plain conversion. Wider numbers have no range
    that says what is white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise BadImage("its pixels are numbers of no known range, neither of 8 nor of 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
