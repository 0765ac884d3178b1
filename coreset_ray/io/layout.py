"""A shard of the pool's rows laid out by dimension in files of this machine, made once from the
embedding parts and memory-mapped by every process that works on it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coreset_ray.core.columns import Columns, Spread, assemble, code_shape, fill_codes
from coreset_ray.core.pool import check_finite
from coreset_ray.io.tables import PartedTable, matrix, read_blocks, uid_words

_FLOAT16_END = 65_520.0  # from here on float16 rounds to infinity
_BLOCK = 16 << 20  # bytes of a part that are read at once
_SPREAD = ("low", "mode", "high", "mean", "deviation")


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Holds the folder's lock: one process of this machine makes what others wait for."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_values(
    folder: Path, table: PartedTable, parts: Sequence[str], rows: int, dtype: str
) -> None:
    """value.npy, (m, rows) of a dtype, and uid.npy, of these parts one after another.

    Raises `ValueError` that names the part and row of a NaN or an infinite value, or the part
    and value of one too large for float16.
    """
    if (folder / "values.done").exists():
        return
    with contextlib.ExitStack() as files:
        value = uid = None
        end = 0
        for part in parts:
            first = end
            for block in read_blocks(table.part(part), ["uid", "embedding"], _BLOCK):
                embedding = _checked(part, end - first, matrix(block["embedding"]), dtype)
                if value is None or uid is None:
                    kind, m = embedding.dtype, embedding.shape[1]
                    value = files.enter_context(_Writer(folder / "value.npy", kind, (m, rows)))
                    uid = files.enter_context(_Writer(folder / "uid.npy", np.uint64, (rows, 2)))
                start, end = end, end + len(embedding)
                assert end <= rows, "parts hold more rows"
                for j, column in enumerate(np.ascontiguousarray(embedding.T)):
                    value.write(column, j, start)
                uid.write(uid_words(block["uid"]), start, 0)
        assert end == rows and value is not None, "parts hold fewer rows"
    (folder / "values.done").touch()


class _Writer:
    """A new .npy file of two dimensions, written piece by piece in any order. Not mapped: a page
    of a map is read before it is written, and with it what the system reads ahead."""

    def __init__(self, path: Path, kind: Any, shape: tuple[int, int]):
        self.path, self.kind, self.shape = path, np.dtype(kind), shape

    def __enter__(self) -> "_Writer":
        self.start = _create(self.path, self.kind, self.shape).offset
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


def _checked(part: str, first: int, embedding: np.ndarray, dtype: str) -> np.ndarray:
    """Embeddings of a part, from row `first` on, in the dtype."""
    try:
        check_finite(embedding, first)
    except ValueError as error:
        raise ValueError(f"part {part!r}: {error}") from None
    if dtype == "float32":
        return embedding
    largest = float(np.abs(embedding).max(initial=0.0))
    if largest >= _FLOAT16_END:
        raise ValueError(
            f"part {part!r}: a value of size {largest:g} is beyond float16, which ends at "
            f"{np.finfo(np.float16).max:g}; set score.columns=float32"
        )
    return embedding.astype(dtype)


def open_values(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """value (m, n) and uid (n, 2)."""
    return _open(folder / "value.npy"), _open(folder / "uid.npy")


def write_index(folder: Path, spread: Spread, sample: np.ndarray, rows: int) -> None:
    """The codes, and what they depend on; with them the layout is finished."""
    if is_finished(folder):
        return
    value = open_values(folder)[0]
    code = _create(folder / "code.npy", np.uint8, code_shape(value))
    fill_codes(value, spread, code)
    code.flush()
    np.save(folder / "sample.npy", sample)
    np.save(folder / "spread.npy", np.stack([getattr(spread, name) for name in _SPREAD]))
    partial = folder / "layout.partial"
    partial.write_text(json.dumps({"rows": rows}))
    os.replace(partial, folder / "layout.json")


def is_finished(folder: Path) -> bool:
    return (folder / "layout.json").exists()


def open_columns(folder: Path) -> Columns:
    """The finished layout, memory-mapped."""
    rows = json.loads((folder / "layout.json").read_text())["rows"]
    spread = Spread(*np.load(folder / "spread.npy"))
    value, uid = open_values(folder)
    code, sample = _open(folder / "code.npy"), _open(folder / "sample.npy")
    return assemble(value, code, sample, uid, spread, rows)


def _open(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _create(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
