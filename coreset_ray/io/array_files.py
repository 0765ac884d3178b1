"""Arrays in files of this machine: written piece by piece, by one process while others wait,
and memory-mapped by all."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Holds the folder's lock: one process of this machine makes what others wait for."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class ArrayWriter:
    """A new .npy file of two dimensions, written piece by piece in any order. Not mapped: a page
    of a map is read before it is written, and with it what the system reads ahead."""

    def __init__(self, path: Path, kind: Any, shape: tuple[int, int]):
        self.path, self.kind, self.shape = path, np.dtype(kind), shape

    def __enter__(self) -> "ArrayWriter":
        self.start = create_array(self.path, self.kind, self.shape).offset
        self.file = self.path.open("r+b")
        return self

    def write(self, piece: np.ndarray, row: int, column: int) -> None:
        """Puts a piece, contiguous and of the file's dtype, at a place and what follows it."""
        place = (row * self.shape[1] + column) * self.kind.itemsize
        left = np.ascontiguousarray(piece, self.kind).data.cast("B")
        while left:
            done = os.pwrite(self.file.fileno(), left, self.start + place)
            left, place = left[done:], place + done

    def __exit__(self, *error: object) -> None:
        os.fsync(self.file.fileno())
        self.file.close()


def open_array(path: Path) -> np.ndarray:
    """A finished file, memory-mapped."""
    return np.load(path, mmap_mode="r").view(np.ndarray)


def create_array(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap:
    """A new file of this dtype and shape, memory-mapped."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
