"""A small pool laid out as a run lays out its own, timed: rows of the pool itself, or random."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from coreset_ray.core.columns import (
    Spread,
    extremes_of,
    finish_spread,
    middle_ranks,
    moments_of,
)
from coreset_ray.core.ranks import RankSearch, count_digits, ordered_bits, values_of
from coreset_ray.io.filesystem import locate
from coreset_ray.io.layout import open_values, sample_here, write_index, write_values
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
    folder: str, rows: int, dims: int, shards: int, source: tuple[str, dict[str, int]] | None
) -> Laid:
    """Makes FOLDER/table and FOLDER/0-of-1 … from the source's first rows, else random ones."""
    from coreset_ray.distributed.score import Layout, row_shards

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
        _write_part(table, f"part{i}", block)
    layout = Layout(1, shards, 0, folder)
    groups = [(Path(s.folder), s.parts, s.size) for s in row_shards(parts, layout)]
    start = time.monotonic()
    for place, names, size in groups:
        place.mkdir(parents=True, exist_ok=True)
        write_values(place, table, names, size)
    spread, sample = _survey([place for place, _, _ in groups], rows)
    for place, _, _ in groups:
        write_index(place, spread, sample, rows)
    seconds = time.monotonic() - start
    files = [f for place, _, _ in groups for f in place.glob("*.npy")]
    return Laid(parts, sum(f.stat().st_size for f in files), seconds)


def first_rows(folder: str, parts: dict[str, int], rows: int, dims: int) -> np.ndarray:
    """(rows, dims) of a table's first rows, by dimensions at equal distances that vary."""
    table, blocks, found = PartedTable(locate(folder)), [], 0
    for part in parts:
        if found >= rows:
            break
        whole = matrix(read_table(table.part(part), ["embedding"])["embedding"])
        blocks.append(whole[: rows - found])
        found += len(blocks[-1])
    if dims >= blocks[0].shape[1]:
        return np.concatenate(blocks)
    varying = np.flatnonzero(np.ptp(blocks[0], axis=0) > 0)
    pool = varying if len(varying) >= dims else np.arange(blocks[0].shape[1])
    chosen = pool[np.linspace(0, len(pool) - 1, dims).astype(int)]
    return np.concatenate([block[:, chosen] for block in blocks])


def _write_part(table: PartedTable, name: str, block: np.ndarray) -> None:
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
    write_table(table.part(name), pa.Table.from_arrays(columns, schema=schema))


def _survey(places: Sequence[Path], rows: int) -> tuple[Spread, np.ndarray]:
    """What `replicas.survey` does, in this process."""
    values = [open_values(place)[0] for place in places]
    lows, highs = zip(*(extremes_of(value) for value in values), strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    search = RankSearch(np.tile(middle_ranks(rows), (len(low), 1)), np.uint32)
    while not search.done:
        search.answer(sum(_digits(value, *search.question()) for value in values))  # type: ignore[arg-type]
    mode = values_of(search.found).astype(float).mean(axis=1)
    sums = [
        [moments_of(c, a, b) for c, a, b in zip(value, low, high, strict=True)] for value in values
    ]
    moments = np.array(sums, object).sum(axis=0)
    sample = np.concatenate([sample_here(place, rows) for place in places], axis=1)
    return finish_spread(low, mode, high, moments, rows), sample


def _digits(value: np.ndarray, found: np.ndarray, shift: int) -> np.ndarray:
    pairs = zip(value, found, strict=True)
    return np.stack([count_digits(ordered_bits(c), f, shift) for c, f in pairs])
