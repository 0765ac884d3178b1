"""A stream that knows how much was read from it and how long that took."""

import time
from typing import BinaryIO


class MeteredStream:
    """Passes reads on. size: bytes read so far; seconds: that reading them took."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.size, self.seconds = 0, 0.0

    def read(self, size: int = -1) -> bytes:
        start = time.perf_counter()
        data = self._stream.read(size)
        self.seconds += time.perf_counter() - start
        self.size += len(data)
        return data
