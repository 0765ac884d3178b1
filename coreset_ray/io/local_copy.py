"""A file of a store as a file of this machine, for libraries that open paths alone."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pyarrow.fs import FileType

from coreset_ray.io.filesystem import locate


def local_copy(uri: str) -> Path:
    """Fetched once a machine and user, for as long as the file there stays what it is.

    Raises `ValueError` where there is no such file.
    """
    place = locate(uri)
    info = place.info()
    if info.type != FileType.File:
        raise ValueError(f"{place} is not a file")
    mark = f"{place}\0{info.size}\0{info.mtime_ns}".encode()
    folder = Path(tempfile.gettempdir(), f"coreset_ray-{os.getuid()}", "copies")
    copy = folder / hashlib.sha256(mark).hexdigest()[:24] / place.name
    if not copy.is_file():
        with place.told(), place.open_stream() as source, locate(copy).replacing() as sink:
            shutil.copyfileobj(source, sink, 1 << 24)
    return copy
