"""A pool laid out by dimension, with what a search over a slice of it needs."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from coreset_ray.core.lanes import LANES
from coreset_ray.core.pool import Pool, check_finite
from coreset_ray.core.random import row_words

_LEVELS = 255  # of the one-byte codes
_SAMPLE = 4096
_BLOCK = 1 << 20  # rows whose copies are held at once
_SAMPLED = np.uint64(0)  # the word that choosing the sample starts from


class Index(NamedTuple):
    """The arrays that compiled code reads, for n rows of m dimensions.

    value: (m, n) float32, or uint16: the bits of float16; code: (m, n rounded up to 64) uint8,
    ⌊(value - low) / 2^grid⌋; sample: (m, s) float32, some rows of the whole pool; low: (m,)
    float64; grid: (m,) int64; uid: (n, 2) uint64; rows: of the whole pool, n or more.
    """

    value: np.ndarray
    code: np.ndarray
    sample: np.ndarray
    low: np.ndarray
    grid: np.ndarray
    uid: np.ndarray
    rows: int


def numbers(index: Index) -> np.ndarray:
    """The values as they may be computed with, (m, n) float32 or float16."""
    return index.value.view(np.float16) if index.value.dtype == np.uint16 else index.value


@dataclass(frozen=True)
class Spread:
    """Minimum, median, maximum, mean and standard deviation of each dimension over the whole
    pool, each (m,) float64. The last two are of values rounded to 2⁻¹⁶ of the range, so that
    they are exact whatever the order of rows."""

    low: np.ndarray
    mode: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @property
    def live(self) -> np.ndarray:
        """Dimensions that vary, in ascending order."""
        return np.flatnonzero(self.high > self.low)

    @property
    def constant(self) -> np.ndarray:
        return np.flatnonzero(~(self.high > self.low))


@dataclass(frozen=True)
class Columns:
    """Rows of a pool by dimension, all of them or one shard; `spread` is of the whole pool.

    resident: the same rows on a GPU (`batched.Resident`), where draws are made there.
    """

    index: Index
    spread: Spread
    resident: Any = None

    def __len__(self) -> int:
        return self.index.value.shape[1]


def columns_of(pool: Pool) -> Columns:
    """Lays out a pool's embeddings by dimension, in memory: float16 ones as they are, all others
    as float32.

    Raises `ValueError` that names the first row with a NaN or an infinite value.
    """
    embedding = pool["embedding"]
    check_finite(embedding)
    kind = np.float16 if embedding.dtype == np.float16 else np.float32
    value = np.ascontiguousarray(embedding.T, kind)
    return whole_columns(value, pool.uid, spread_of(value))


def whole_columns(value: np.ndarray, uid: np.ndarray, spread: Spread) -> Columns:
    """All rows of a pool. value: (m, n) float32 or float16; uid: (n, 2) uint64."""
    rows = value.shape[1]
    return index_columns(value, uid, spread, sample_of(value, uid, rows), rows)


def index_columns(
    value: np.ndarray, uid: np.ndarray, spread: Spread, sample: np.ndarray, rows: int
) -> Columns:
    """Adds the codes. value: (m, n) float32 or float16; sample: (m, s) of the whole pool."""
    code = np.zeros(code_shape(value), np.uint8)
    fill_codes(value, spread, code)
    return assemble(value, code, sample, uid, spread, rows)


def assemble(
    value: np.ndarray,
    code: np.ndarray,
    sample: np.ndarray,
    uid: np.ndarray,
    spread: Spread,
    rows: int,
) -> Columns:
    """Columns of arrays that are there, none of which is written to from here on."""
    read, low, grid = _read_only, np.ascontiguousarray(spread.low), grid_of(spread)
    uid, sample = np.ascontiguousarray(uid), sample.astype(np.float32, copy=False)
    value = value.view(np.uint16) if value.dtype == np.float16 else value
    index = Index(read(value), read(code), read(sample), read(low), read(grid), read(uid), rows)
    return Columns(index, spread)


def code_shape(value: np.ndarray) -> tuple[int, int]:
    """Rows are rounded up, so that a kernel may read whole vectors."""
    return len(value), -(-value.shape[1] // LANES) * LANES


def fill_codes(value: np.ndarray, spread: Spread, code: np.ndarray) -> None:
    grid = grid_of(spread)
    for j, column in enumerate(value):
        for part in blocks(len(column)):
            code[j, part] = encode(column[part], spread.low[j], grid[j])


def blocks(rows: int) -> list[slice]:
    """So many rows in parts whose copies are small beside a pool."""
    return [slice(a, min(rows, a + _BLOCK)) for a in range(0, rows, _BLOCK)]


def grid_of(spread: Spread) -> np.ndarray:
    """(m,) int64: the least whole exponent e with (high - low) / 2^e ≤ 255 for each dimension;
    of no meaning where the dimension is constant."""
    span = spread.high - spread.low
    return np.ceil(np.log2(np.where(span > 0, span, 1.0) / _LEVELS)).astype(np.int64)


def encode(column: np.ndarray, low: float, grid: int) -> np.ndarray:
    """(n,) values → (n,) uint8 codes; never above the true quotient, and less than 1 below."""
    return np.ldexp(column.astype(np.float64) - low, -grid).clip(0, _LEVELS).astype(np.uint8)


def spread_of(value: np.ndarray) -> Spread:
    """value: (m, n) float32 or float16."""
    low, high = extremes_of(value)
    mode = np.array([np.median(c.astype(np.float64)) for c in value])
    moments = np.array([moments_of(c, a, b) for c, a, b in zip(value, low, high, strict=True)])
    return finish_spread(low, mode, high, moments, value.shape[1])


def moments_of(column: np.ndarray, low: float, high: float) -> tuple[int, int]:
    """Exact sums of q and q² with q = round((value - low) / (high - low) · 2¹⁶)."""
    if high <= low:
        return 0, 0
    first = second = 0
    for part in blocks(len(column)):
        q = np.rint((column[part].astype(np.float64) - low) * (2.0**16 / (high - low)))
        first += int(q.sum())  # whole numbers below 2⁵³: exact
        second += int((q * q).sum())
    return first, second


def finish_spread(
    low: np.ndarray, mode: np.ndarray, high: np.ndarray, moments: np.ndarray, rows: int
) -> Spread:
    """moments: (m, 2) sums over all rows of `moments_of`."""
    unit = (high - low) / 2.0**16
    first = np.array([int(s) / rows for s, _ in moments])
    var = [(rows * int(s2) - int(s) ** 2) / rows**2 for s, s2 in moments]  # whole numbers: exact
    return Spread(low, mode, high, low + unit * first, unit * np.sqrt(np.array(var)))


def sample_size(rows: int) -> int:
    """Rows that stand for a pool of so many when a radius is guessed, as many as are expected."""
    return min(rows, max(_SAMPLE, rows // 50))


def sample_of(value: np.ndarray, uid: np.ndarray, rows: int) -> np.ndarray:
    """The rows here that stand for a pool of so many, (m, s): those whose scrambled uid lies below
    a threshold, a choice that no order or split of rows can bias. It changes speed and never an
    answer. value: (m, n); uid: (n, 2)."""
    part = sample_size(rows) / rows
    if part == 1:
        return np.ascontiguousarray(value)
    chosen = np.flatnonzero(row_words(uid, _SAMPLED) < np.uint64(part * 2.0**64))
    return np.stack([column[chosen] for column in value])  # one after another: they may be files


def extremes_of(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum of each dimension, two (m,) float64. value: (m, n)."""
    return value.min(axis=1).astype(float), value.max(axis=1).astype(float)


def middle_ranks(rows: int) -> list[int]:
    """The ranks whose values' mean is the median."""
    return [(rows - 1) // 2, rows // 2]


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
