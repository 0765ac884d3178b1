"""A small pool laid out as a run lays out its own, timed: rows of the pool itself, or random."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from coreset_ray.core.survey import survey
from coreset_ray.io.filesystem import locate
from coreset_ray.io.row_files import RowFiles, row_shards
from coreset_ray.io.tables import (
    PartedTable,
    embedding_schema,
    matrix,
    read_table,
    uid_of,
    write_table,
)

_PART = 20_000  # rows of a part


@dataclass(frozen=True)
class Laid:
    """parts: of its table, with their rows; columns: bytes laid out; seconds: they took."""

    parts: dict[str, int]
    columns: int
    seconds: float


def lay_out(
    folder: str,
    rows: int,
    dims: int,
    shards: int,
    dtype: str,
    source: tuple[str, dict[str, int]] | None,
) -> Laid:
    """Makes FOLDER/table and FOLDER/0-of-1 … from the source's first rows, else random ones."""
    table = PartedTable(locate(f"{folder}/table"))
    embedding = (
        np.random.default_rng(0).standard_normal((rows, dims), np.float32)
        if source is None
        else first_rows(*source, rows, dims)
    )
    count = max(min(shards, rows), -(-rows // _PART))
    parts = {}
    for i, block in enumerate(np.array_split(embedding, count)):
        parts[f"part{i}"] = len(block)
        write_rows(table, f"part{i}", block)
    shards_here = [RowFiles(shard, table) for shard in row_shards(parts, shards, folder, dtype)]
    start = time.monotonic()
    known = survey(lambda step, *told: [getattr(s, step)(*told) for s in shards_here], rows)
    for shard in shards_here:
        shard.finish(known)
    seconds = time.monotonic() - start
    files = [f for shard in shards_here for f in shard.folder.glob("*.npy")]
    return Laid(parts, sum(f.stat().st_size for f in files), seconds)


def first_rows(
    folder: str, parts: dict[str, int], rows: int, dims: int | None = None
) -> np.ndarray:
    """(rows, dims) of a table's first rows, by all dimensions, or by so many at equal distances
    that vary."""
    table, blocks, found = PartedTable(locate(folder)), [], 0
    for part in parts:
        if found >= rows:
            break
        whole = matrix(read_table(table.part(part), ["embedding"])["embedding"])
        blocks.append(whole[: rows - found])
        found += len(blocks[-1])
    if dims is None or dims >= blocks[0].shape[1]:
        return np.concatenate(blocks)
    varying = np.flatnonzero(np.ptp(blocks[0], axis=0) > 0)
    pool = varying if len(varying) >= dims else np.arange(blocks[0].shape[1])
    chosen = pool[np.linspace(0, len(pool) - 1, dims).astype(int)]
    return np.concatenate([block[:, chosen] for block in blocks])


def write_rows(table: PartedTable, name: str, block: np.ndarray) -> None:
    """A part of a table that holds these embeddings, (n, m) float32, of made-up images."""
    write_table(table.part(name), made_up(name, block))


def made_up(name: str, block: np.ndarray) -> pa.Table:
    """The rows of a shard of images that are made up, with these embeddings, (n, m) float32."""
    keys = [f"{i:08d}" for i in range(len(block))]
    schema = embedding_schema(block.shape[1], "float32")
    columns = [
        pa.array([uid_of(name, key) for key in keys]),
        pa.array([name] * len(keys)),
        pa.array(keys),
        pa.array([""] * len(keys)),
        *[pa.array([1] * len(keys), pa.int32())] * 2,
        pa.FixedSizeListArray.from_arrays(pa.array(block.ravel(), pa.float32()), block.shape[1]),
    ]
    return pa.Table.from_arrays(columns, schema=schema)
