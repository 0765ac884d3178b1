"""Files read at many offsets: opened once, a few of them open at a time."""

from typing import BinaryIO

from coreset_ray.io.filesystem import locate


class OpenFiles:
    """Files opened for reading at any offset, the latest few of them."""

    _MOST = 16

    def __init__(self) -> None:
        self._open: dict[str, BinaryIO] = {}

    def read(self, path: str, offset: int, size: int) -> bytes:
        """As many bytes from there on; fewer where the file ends."""
        if path not in self._open:
            if len(self._open) >= self._MOST:
                oldest = next(iter(self._open))
                self._open.pop(oldest).close()
            self._open[path] = locate(path).open_file()
        source = self._open[path]
        with locate(path).told():
            source.seek(offset)
            return source.read(size)

    def close(self) -> None:
        for source in self._open.values():
            source.close()
        self._open.clear()
