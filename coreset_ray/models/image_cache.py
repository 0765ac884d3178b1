"""Decoded images kept in files of a machine, so that a training decodes each only once."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms import v2

from coreset_ray.models.images import IndexedImages
from coreset_ray.models.resnet import SMALL

_log = logging.getLogger(__name__)

_ENTRY = np.dtype([("file", "i4"), ("width", "i4"), ("height", "i4"), ("start", "i8")])
_RESERVE = 0.1  # of the disk, left free


class ImageCache:
    """RGB images by row number, 3 bytes a pixel, of one training worker and the processes that
    load for it, each of which writes a file of its own.

    A row is asked for once an epoch, so no two processes ever write the same one. Begins empty;
    once less than a tenth of the disk is free it takes no more, and says so.
    """

    def __init__(self, folder: Path, rows: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        np.lib.format.open_memmap(folder / "index.npy", "w+", _ENTRY, (rows,)).flush()
        with (folder / "index.npy").open("r+b") as file:  # or a full disk is a bus error later
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        self._open()

    def _open(self) -> None:
        self.index = np.load(self.folder / "index.npy", mmap_mode="r+")
        self._read: dict[int, int] = {}  # descriptors by number of the file
        self._own, self._end, self.full = 0, 0, False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._open()

    def get(self, row: int) -> Image.Image | None:
        """The image of this row, None where it was not kept."""
        number, width, height, start = self.index[row].tolist()
        if not number:
            return None
        if number not in self._read:
            self._read[number] = os.open(self._file(number), os.O_RDONLY)
        data = os.pread(self._read[number], 3 * width * height, start)
        return Image.frombytes("RGB", (width, height), data)

    def put(self, row: int, image: Image.Image) -> None:
        """Keeps the image unless the disk is nearly full."""
        disk = shutil.disk_usage(self.folder)
        if self.full or disk.free < _RESERVE * disk.total:
            if not self.full:
                _log.warning("%s: the disk is nearly full, so not all images are kept", self.folder)
            self.full = True
            return
        if not self._own:
            self._create()
        data = image.tobytes()
        with self._file(self._own).open("ab") as sink:
            sink.write(data)
        self.index[row] = (self._own, *image.size, self._end)
        self._end += len(data)

    def kept(self) -> int:
        """How many images are there."""
        return int((self.index["file"] > 0).sum())

    def _create(self) -> None:
        """A file that no other process has."""
        while not self._own:
            number = 1 + sum(1 for _ in self.folder.glob("*.rgb"))
            try:
                self._file(number).open("xb").close()
                self._own = number
            except FileExistsError:
                continue

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.rgb"


class CachedImages(IndexedImages):
    """The same images, shrunk before they are augmented, decoded once as far as the cache goes.

    A shorter side above image_size (8/7 of it where image_size > 64, as for tests) is resized to
    that. Up to 64 pixels the augmentation begins with this very step, so nothing changes; above,
    RandomResizedCrop takes its crops from the smaller image, which makes small crops less sharp.
    Kept or not, an image is shrunk alike.
    """

    def __init__(self, *table: Any, cache: ImageCache, image_size: int, **how: Any) -> None:
        super().__init__(*table, **how)
        self.cache = cache
        self.shorter = image_size if image_size <= SMALL else round(image_size * 8 / 7)
        self.shrink = v2.Resize(self.shorter)

    def _read(self, row: int) -> Image.Image:
        if (kept := self.cache.get(row)) is not None:
            return kept
        image = super()._read(row)
        if min(image.size) > self.shorter:
            image = self.shrink(image)
        self.cache.put(row, image)
        return image
