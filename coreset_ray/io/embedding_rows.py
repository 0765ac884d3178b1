"""A pool's embeddings row after row in one file of this machine, made once from the embedding
parts: what trains on embeddings reads any row at any time."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coreset_ray.core.pool import check_finite
from coreset_ray.io.array_files import ArrayWriter, open_array, sole
from coreset_ray.io.tables import PartedTable, matrix, read_blocks

_BLOCK = 16 << 20  # bytes of a part that are read at once
_STILL = 1e-7  # of its mean: a dimension that deviates no more holds one value


@dataclass(frozen=True)
class EmbeddingRows:
    """rows: (n, m), memory-mapped, in the order of the parts; mean, deviation: of each dimension,
    (m,) float32, the deviation 1 where the dimension does not vary."""

    rows: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


def lay_rows(
    folder: Path, table: PartedTable, parts: dict[str, int], dtype: str = "float32"
) -> EmbeddingRows:
    """The file in this folder, written if it is not there yet; one process writes, others wait.

    parts: rows of each; dtype: float32, or float16 where the table holds float16. Raises
    `ValueError` that names the part of a NaN or an infinite value, or of other width.
    """
    with sole(folder):
        if not (folder / "rows.done").exists():
            moments = _write(folder, table, parts, dtype)
            np.save(folder / "moments.npy", moments)
            (folder / "rows.done").touch()
    return EmbeddingRows(open_array(folder / "rows.npy"), *np.load(folder / "moments.npy"))


def _write(folder: Path, table: PartedTable, parts: dict[str, int], dtype: str) -> np.ndarray:
    """Writes the rows; (2, m) float32 mean and deviation."""
    total, file, first, end = sum(parts.values()), None, "", 0
    sums = np.zeros((2, 0))
    with contextlib.ExitStack() as files:
        for part in parts:
            start = end
            for block in read_blocks(table.part(part), ["embedding"], _BLOCK):
                embedding = matrix(block["embedding"])
                try:
                    check_finite(embedding, end - start)
                except ValueError as error:
                    raise ValueError(f"part {part!r}: {error}") from None
                if file is None:
                    shape, first = (total, embedding.shape[1]), part
                    file = files.enter_context(ArrayWriter(folder / "rows.npy", dtype, shape))
                    sums, shift = np.zeros((2, shape[1])), embedding.mean(axis=0, dtype=np.float64)
                if embedding.shape[1] != file.shape[1]:
                    raise ValueError(
                        f"part {part!r} holds embeddings of {embedding.shape[1]} dimensions, where "
                        f"part {first!r} has {file.shape[1]}: delete its two files in "
                        f"{table.folder.uri}/parts and embed again"
                    )
                assert end + len(embedding) <= total, "parts hold more rows"
                file.write(np.ascontiguousarray(embedding, dtype), end, 0)
                apart = embedding - shift  # about any mean, so that little cancels
                sums += apart.sum(axis=0), np.square(apart).sum(axis=0)
                end += len(embedding)
        assert end == total and file is not None, "parts hold fewer rows"
    mean, square = sums / total
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    deviation[deviation <= _STILL * np.abs(mean + shift)] = 1.0
    return np.stack([mean + shift, deviation]).astype(np.float32)
