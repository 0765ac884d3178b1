"""A shard of the pool's rows laid out by dimension in files of this machine, made once from the
embedding parts and memory-mapped by every process that works on it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from coreset_ray.core.columns import Columns, Spread, assemble, code_shape, fill_codes
from coreset_ray.core.pool import check_finite
from coreset_ray.io.tables import PartedTable, matrix, read_table, uid_words

_SPREAD = ("low", "mode", "high", "mean", "deviation")


@contextlib.contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Holds the folder's lock: one process of this machine makes what others wait for."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_values(folder: Path, table: PartedTable, parts: Sequence[str], rows: int) -> None:
    """value.npy, (m, rows) float32, and uid.npy, of these parts one after another.

    Raises `ValueError` that names the part and row of a NaN or an infinite value.
    """
    if (folder / "values.done").exists():
        return
    value = uid = None
    start = 0
    for part in parts:
        block = read_table(table.part(part), ["uid", "embedding"])
        embedding = matrix(block["embedding"])
        try:
            check_finite(embedding)
        except ValueError as error:
            raise ValueError(f"part {part!r}: {error}") from None
        if value is None or uid is None:
            value = _create(folder / "value.npy", np.float32, (embedding.shape[1], rows))
            uid = _create(folder / "uid.npy", np.uint64, (rows, 2))
        value[:, start : start + len(embedding)] = embedding.T
        uid[start : start + len(embedding)] = uid_words(block["uid"])
        start += len(embedding)
    assert value is not None and uid is not None and start == rows, "parts hold other rows"
    value.flush()
    uid.flush()
    (folder / "values.done").touch()


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


def _create(path: Path, kind: type, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
