"""The rows of one shard of a pool, laid out by dimension in files of this machine."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from coreset_ray.core.columns import Columns, Spread, blocks, extremes_of, moments_of, sample_of
from coreset_ray.core.ranks import count_digits, ordered_bits
from coreset_ray.io.array_files import machine_folder, sole
from coreset_ray.io.layout import (
    is_finished,
    open_columns,
    open_values,
    write_index,
    write_values,
)
from coreset_ray.io.tables import PartedTable


@dataclass(frozen=True)
class RowShard:
    """Rows of the pool: those of these parts, one after another. folder: where each machine that
    works on it lays them out; rows: of each part; pool: rows of the whole pool; dtype: of the
    values laid out, float32 or float16."""

    folder: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    pool: int
    dtype: str = "float32"

    @property
    def size(self) -> int:
        return sum(self.rows)


def row_shards(
    parts: dict[str, int], count: int, folder: str, dtype: str = "float32"
) -> list[RowShard]:
    """Consecutive parts in as many shards of about as many rows; fewer where parts are few.

    parts: rows of each; folder: where each shard is to have one of its own.
    """
    pool = sum(parts.values())
    groups: list[list[str]] = [[] for _ in range(min(count, len(parts)))]
    seen = 0
    for part, rows in parts.items():
        groups[min(len(groups) - 1, (seen + rows // 2) * len(groups) // pool)].append(part)
        seen += rows
    filled = [g for g in groups if g]
    return [
        RowShard(
            f"{folder}/{i}-of-{len(filled)}", tuple(g), tuple(parts[p] for p in g), pool, dtype
        )
        for i, g in enumerate(filled)
    ]


class RowFiles:
    """A shard's files, and what they tell `survey`."""

    def __init__(self, shard: RowShard, table: PartedTable):
        self.shard, self.table = shard, table

    @cached_property
    def folder(self) -> Path:
        return machine_folder(self.shard.folder)

    def laid_out(self) -> bool:
        return is_finished(self.folder)

    def lay_out(self) -> None:
        """Writes the values; what follows but `finish` and `columns` needs them."""
        with sole(self.folder):
            write_values(
                self.folder, self.table, self.shard.parts, self.shard.size, self.shard.dtype
            )

    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """Lays out the values; their minimum and maximum by dimension."""
        self.lay_out()
        return extremes_of(open_values(self.folder)[0])

    def digits(self, found: np.ndarray, shift: int) -> np.ndarray:
        """(m, r, 256) counts for a rank search in every dimension."""
        value = open_values(self.folder)[0]
        pairs = zip(value, found, strict=True)
        return np.stack([_digits(column, prefix, shift) for column, prefix in pairs])

    def moments(self, low: np.ndarray, high: np.ndarray) -> list[tuple[int, int]]:
        value = open_values(self.folder)[0]
        return [moments_of(c, a, b) for c, a, b in zip(value, low, high, strict=True)]

    def sample(self) -> np.ndarray:
        """This shard's part of the pool's sample, (m, s)."""
        return sample_of(*open_values(self.folder), self.shard.pool)

    def known(self) -> tuple[Spread, np.ndarray]:
        """What a finished layout holds of the whole pool, to lay out the shard elsewhere."""
        columns = self.columns()
        return columns.spread, np.asarray(columns.index.sample)

    def finish(self, known: tuple[Spread, np.ndarray]) -> None:
        """Lays out whatever is missing, given what is known of the whole pool."""
        if not self.laid_out():
            self.lay_out()
            with sole(self.folder):
                write_index(self.folder, *known, self.shard.pool)

    def columns(self) -> Columns:
        """Of a finished layout, memory-mapped."""
        return open_columns(self.folder)


def _digits(column: np.ndarray, prefix: np.ndarray, shift: int) -> np.ndarray:
    """(r, 256) counts of one dimension."""
    parts = (ordered_bits(column[part].astype(np.float32)) for part in blocks(len(column)))
    return sum(count_digits(bits, prefix, shift) for bits in parts)  # type: ignore[return-value]
