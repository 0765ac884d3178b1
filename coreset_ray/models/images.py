"""Labelled images inside tar files, read by byte offset, and the batches of an epoch."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from coreset_ray.core.random import draw_words

_OPEN_FILES = 32  # a process, not a machine
_WORDS = 1 << 20  # rows whose random words are drawn at once


def _open_local(path: str) -> BinaryIO:
    return open(path, "rb")


class IndexedImages(Dataset[tuple[Any, int]]):
    """Row i is the image at bytes offset[i] … offset[i] + size[i] - 1 of the file path[i].

    path: (n,) strings. offset, size: (n,) int64, bytes. label: (n,) int64.
    decode: bytes → PIL RGB; it must bound the pixels that it is willing to decode.
    transform: PIL RGB → tensor. open_file: path → a seekable binary file.

    A file is opened on first use and kept, the least recently used closed beyond 32. Handles
    are neither pickled nor used across a fork, where two processes would share one position.
    """

    def __init__(
        self,
        path: Sequence[str],
        offset: np.ndarray,
        size: np.ndarray,
        label: np.ndarray,
        *,
        decode: Callable[[bytes], Image.Image],
        transform: Callable[[Image.Image], Any],
        open_file: Callable[[str], BinaryIO] = _open_local,
    ) -> None:
        self._start()
        if not len(path) == len(offset) == len(size) == len(label):
            lengths = len(path), len(offset), len(size), len(label)
            raise ValueError(f"path, offset, size, label have lengths {lengths}; expected equal")
        number: dict[str, int] = {}  # a path is kept once, a row keeps its number
        self.file = np.array([number.setdefault(p, len(number)) for p in path], np.int32)
        self.paths = list(number)
        self.offset, self.size, self.label = offset, size, label
        self.decode, self.transform, self.open_file = decode, transform, open_file

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Any, int]:
        """(transformed image, label) of a row, or of (row, seed).

        With a seed, in [0, 2⁶³), the transform's random numbers are a function of it alone and
        torch's generator is left as it was, so the process that reads a row does not matter.
        """
        row, seed = key if isinstance(key, tuple) else (key, None)
        image = self._read(row)
        if seed is None:
            return self.transform(image), int(self.label[row])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(image), int(self.label[row])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_files", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def close(self) -> None:
        """Close the open files; the next read opens its own again."""
        for stream in self._files.values():
            stream.close()
        self._files.clear()

    __del__ = close

    def _read(self, row: int) -> Image.Image:
        path, offset, size = self.paths[self.file[row]], int(self.offset[row]), int(self.size[row])
        stream = self._file(path)
        stream.seek(offset)
        data = stream.read(size)
        try:
            if len(data) < size:
                raise ValueError(f"the file ends after {len(data)} of {size} bytes")
            return self.decode(data)
        except Exception as error:
            raise ValueError(
                f"no image at byte {offset} of {path}: {error}; "
                "has the shard changed since it was embedded?"
            ) from error

    def _file(self, path: str) -> BinaryIO:
        if self._process != os.getpid():
            self.close()  # this process's copies of the handles
            self._start()
        if path not in self._files:
            self._files[path] = self.open_file(path)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def _start(self) -> None:
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()
        self._process = os.getpid()


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The shuffled batches of an epoch, and one worker's share of each.

    The order of rows and the seed of each row's augmentation are functions of (seed, epoch,
    row), so the images that meet in a batch, and how they look, depend neither on the number of
    workers nor on what ran before. Worker r of w takes every w-th row of each batch, from r on.

    Batch normalisation needs two images a worker. A last batch too small for that is left out
    of its epoch where there are other batches (the rows differ from epoch to epoch); where it
    is the only one, its rows are repeated until each worker has two.

    batch_size: rows of a batch, over all workers; at least 2 · workers.
    """

    def __init__(
        self, rows: int, batch_size: int, *, seed: int, worker: int = 0, workers: int = 1
    ) -> None:
        if batch_size < 2 * workers:
            raise ValueError(
                f"batch_size={batch_size} over {workers} workers: batch normalisation needs two "
                "images a worker; raise batch_size or lower workers"
            )
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.worker, self.workers = worker, workers
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Make `batches` and the iterator those of this epoch, counted from 0."""
        words = draw_words(self.seed, epoch * self.rows, self.rows, 2)
        order = np.argsort(words[:, 0], kind="stable")
        self._row_seed = (words[:, 1] >> np.uint64(1)).astype(np.int64)
        batches = [order[i : i + self.batch_size] for i in range(0, self.rows, self.batch_size)]
        if len(batches[-1]) < 2 * self.workers:
            batches[-1:] = [] if len(batches) > 1 else [np.resize(order, 2 * self.workers)]
        self.batches = batches  # of all workers together

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch, over all workers."""
        return [len(batch) for batch in self.batches]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """This worker's share of each batch, as (row, seed) keys of `IndexedImages`."""
        for batch in self.batches:
            share = batch[self.worker :: self.workers]
            yield list(zip(share.tolist(), self._row_seed[share].tolist(), strict=True))


class OwnedBatches(EpochBatches):
    """The same, with every row in exactly one batch of each epoch and always with one worker, so
    that a worker can keep what it knows of a row: worker r of w owns rows r, r + w, … and each of
    its batches takes the next of them in their shuffled order. A last batch too small for batch
    normalisation is joined to the one before.

    A worker knows the order of its own rows alone: O(rows / workers) memory.
    """

    def __init__(
        self, rows: int, batch_size: int, *, seed: int, worker: int = 0, workers: int = 1
    ) -> None:
        if rows < 2 * workers:
            raise ValueError(
                f"{rows} images over {workers} workers: each needs two; lower workers, or give "
                "more images"
            )
        super().__init__(rows, batch_size, seed=seed, worker=worker, workers=workers)

    def set_epoch(self, epoch: int) -> None:
        words = np.concatenate(list(self._own_words(epoch)))
        order = np.argsort(words[:, 0], kind="stable")
        self._row_seed = (words[:, 1] >> np.uint64(1)).astype(np.int64)
        ends = np.append(np.arange(self.batch_size, self.rows, self.batch_size), self.rows)
        if len(ends) > 1 and ends[-1] - ends[-2] < 2 * self.workers:
            ends = np.delete(ends, -2)
        self._sizes = np.diff(ends, prepend=0).tolist()
        self.own = np.split(order, -(-(ends[:-1] - self.worker) // self.workers))

    def _own_words(self, epoch: int) -> Iterator[np.ndarray]:
        """Random words of this worker's rows, (r, 2) at a time."""
        for first in range(0, self.rows, _WORDS):
            count = min(_WORDS, self.rows - first)
            words = draw_words(self.seed, epoch * self.rows + first, count, 2)
            yield words[(self.worker - first) % self.workers :: self.workers]

    @property
    def sizes(self) -> list[int]:
        return self._sizes

    def row(self, own: np.ndarray) -> np.ndarray:
        """The numbers in the pool of rows that are this worker's first, second, …"""
        return self.worker + self.workers * own

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for own in self.own:
            yield list(zip(self.row(own).tolist(), self._row_seed[own].tolist(), strict=True))
