"""A picture in memory as PNG: lossless, and without the metadata that would vary."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def png_bytes(image: "Image") -> bytes:
    """The image as PNG; a colour model that PNG lacks (such as CMYK) becomes RGB."""
    buffer = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, format="PNG")
    return buffer.getvalue()
