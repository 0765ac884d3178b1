"""Versions of what may change an answer, for the record."""

import platform
from importlib import metadata

_PACKAGES = ("numpy", "numba", "torch", "torchvision", "timm", "open_clip_torch", "pyarrow", "ray")


def versions() -> dict[str, str]:
    """Python and package versions of this process."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "pillow": metadata.version("pillow"), **found}
