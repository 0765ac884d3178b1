"""A shard of the pool's rows laid out by dimension in files of this machine, made once from the
embedding parts and memory-mapped by every process that works on it."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coreset_ray.core.columns import Columns, Spread, assemble, code_shape, fill_codes
from coreset_ray.core.pool import check_finite
from coreset_ray.io.array_files import ArrayWriter, create_array, open_array, write_array
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, matrix, read_blocks, uid_words

_FLOAT16_END = 65_520.0  # from here on float16 rounds to infinity
_BLOCK = 16 << 20  # bytes of a part that are read at once
_SPREAD = ("low", "mode", "high", "mean", "deviation")


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
                    value = files.enter_context(ArrayWriter(folder / "value.npy", kind, (m, rows)))
                    uid = files.enter_context(ArrayWriter(folder / "uid.npy", np.uint64, (rows, 2)))
                start, end = end, end + len(embedding)
                assert end <= rows, "parts hold more rows"
                for j, column in enumerate(np.ascontiguousarray(embedding.T)):
                    value.write(column, j, start)
                uid.write(uid_words(block["uid"]), start, 0)
        assert end == rows and value is not None, "parts hold fewer rows"
    (folder / "values.done").touch()


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
    return open_array(folder / "value.npy"), open_array(folder / "uid.npy")


def write_index(folder: Path, spread: Spread, sample: np.ndarray, rows: int) -> None:
    """The codes, and what they depend on; with them the layout is finished."""
    if is_finished(folder):
        return
    value = open_values(folder)[0]
    code = create_array(folder / "code.npy", np.uint8, code_shape(value))
    fill_codes(value, spread, code)
    code.flush()
    write_array(folder / "sample.npy", sample)
    write_array(folder / "spread.npy", np.stack([getattr(spread, name) for name in _SPREAD]))
    (locate(folder) / "layout.json").write_json({"rows": rows})


def is_finished(folder: Path) -> bool:
    return (folder / "layout.json").exists()


def open_columns(folder: Path) -> Columns:
    """The finished layout, memory-mapped."""
    rows = json.loads((folder / "layout.json").read_text())["rows"]
    spread = Spread(*np.load(folder / "spread.npy"))
    value, uid = open_values(folder)
    code, sample = open_array(folder / "code.npy"), open_array(folder / "sample.npy")
    return assemble(value, code, sample, uid, spread, rows)
