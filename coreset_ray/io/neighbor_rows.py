"""The neighbours of a pool's rows in one file of this machine, made once from the k-NN signal."""

from pathlib import Path

import numpy as np

from coreset_ray.io.array_files import ArrayWriter, open_array, sole
from coreset_ray.io.filesystem import Location
from coreset_ray.io.tables import read_blocks

_BLOCK = 16 << 20  # bytes of a part that are read at once


def lay_neighbors(folder: Path, signal: Location, parts: dict[str, int]) -> np.ndarray:
    """Row numbers (n, k), memory-mapped, int32 where they fit, best first; the file is written if
    it is not there yet, by one process while others wait.

    signal: folder of the signal's parts; parts: rows of each, in the order that numbers rows.
    Raises `ValueError` that names a part which is missing, or of other rows or another k.
    """
    with sole(folder):
        if not (folder / "neighbors.done").exists():
            _write(folder / "neighbors.npy", signal, parts)
            (folder / "neighbors.done").touch()
    return open_array(folder / "neighbors.npy")


def _write(path: Path, signal: Location, parts: dict[str, int]) -> None:
    total, end = sum(parts.values()), 0
    k = _width(signal, next(iter(parts)))
    with ArrayWriter(path, np.int32 if total < 2**31 else np.int64, (total, k)) as file:
        for part, rows in parts.items():
            start = end
            if _width(signal, part) != k:
                raise _unfit(signal, part, f"has not the {k} neighbours a row of the first part")
            for block in read_blocks(_part(signal, part), ["neighbor"], _BLOCK):
                column = block["neighbor"].combine_chunks()
                neighbor = column.flatten().to_numpy().reshape(-1, k)
                if ((neighbor < 0) | (neighbor >= total)).any():
                    raise _unfit(signal, part, f"names rows outside 0 … {total - 1}")
                file.write(neighbor.astype(file.kind), end, 0)
                end += len(neighbor)
            if end - start != rows:
                raise _unfit(signal, part, f"has {end - start} rows where the pool has {rows}")


def _width(signal: Location, part: str) -> int:
    """k, or 0 where the part has none."""
    if not _part(signal, part).exists():
        raise _unfit(signal, part, "is not there")
    for block in read_blocks(_part(signal, part), ["neighbor"], 1):
        return block["neighbor"].type.list_size
    return 0


def _part(signal: Location, part: str) -> Location:
    return signal / f"part-{part}.parquet"


def _unfit(signal: Location, part: str, why: str) -> ValueError:
    return ValueError(
        f"{_part(signal, part).uri} {why}: delete that folder's done.json and the file, and find "
        "neighbours again"
    )
