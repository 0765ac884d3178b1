"""Arrays in files of this machine: written piece by piece, by one process while others wait,
and memory-mapped by all."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coreset_ray.io.full_disk import naming

_ELSEWHERE = "compute.scratch"


def machine_folder(name: str) -> Path:
    """A folder of this machine. One that begins with $NAME lies where this machine's environment
    says, as that of a batch system does; `ValueError` where it says nothing."""
    variable, _, rest = name.partition("/")
    if not variable.startswith("$"):
        return Path(name)
    place = os.environ.get(variable.strip("${}"))
    if not place:
        raise ValueError(
            f"compute.scratch begins with {variable}, which is not set on {os.uname().nodename}: "
            "set it on every node before Ray starts there, or name a folder"
        )
    return Path(place, rest)


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
        with naming(self.path, _ELSEWHERE):
            while left:
                done = os.pwrite(self.file.fileno(), left, self.start + place)
                left, place = left[done:], place + done

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self.file:
            if kind is None:
                with naming(self.path, _ELSEWHERE):
                    os.fsync(self.file.fileno())
        if kind is not None:  # so much of it as there is stands in the way of all else
            self.path.unlink(missing_ok=True)


def open_array(path: Path) -> np.ndarray:
    """A finished file, memory-mapped."""
    return np.load(path, mmap_mode="r").view(np.ndarray)


def create_array(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap:
    """A new file of this dtype and shape, memory-mapped, with all its room on the disk.

    Raises `FullDisk` where there is too little. Without that a page written through the map of a
    sparse file would end the process, with a bus error and not a word.
    """
    try:
        with naming(path, _ELSEWHERE):
            array = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return array


def write_array(path: Path, values: np.ndarray) -> None:
    """A new .npy file of these values."""
    array = create_array(path, values.dtype, values.shape)
    array[...] = values
    array.flush()
