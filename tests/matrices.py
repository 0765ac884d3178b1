"""Embeddings of several kinds, and small helpers around the sums of draws."""

from collections.abc import Callable, Sequence

import numpy as np

from coreset_ray.core.columns import Columns, index_columns, numbers
from coreset_ray.core.method import Sampled
from coreset_ray.core.run import empty_total

Make = Callable[[int, np.random.Generator], np.ndarray]
M = 20  # dimensions


def gaussian(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(n, M))


def relu(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(rng.normal(size=(n, M)), 0)


def duplicates(n: int, rng: np.random.Generator) -> np.ndarray:
    """Half the rows repeat a few of the others; the rest occur once."""
    base = rng.normal(size=(max(2, n // 2), M))
    return np.concatenate([base, base[rng.integers(0, max(1, len(base) // 3), n - len(base))]])


def grid(n: int, rng: np.random.Generator) -> np.ndarray:
    """Many ties, and zeros of either sign."""
    z = rng.integers(0, 4, (n, M)).astype(float)
    return np.where(z == 0, rng.choice([0.0, -0.0], (n, M)), z)


def outliers(n: int, rng: np.random.Generator) -> np.ndarray:
    """Dimensions of very different width, many zeros, a few rows far from all others."""
    z = rng.standard_t(1.1, (n, M)) * 10.0 ** rng.integers(-6, 7, M)
    return np.where(rng.random((n, M)) < 0.3, 0.0, z).astype(np.float32).astype(float)


def tally(method: Sampled, columns: Columns, seed: int, first: int, last: int) -> np.ndarray:
    """The sum of these draws, and of no other."""
    total = empty_total(method, columns)
    method.tally(columns, seed, first, last, total)
    return total


def in_shards(
    columns: Columns, cuts: Sequence[int], sample: np.ndarray | None = None
) -> list[Columns]:
    """The rows of a pool in consecutive shards, with another sample if given."""
    index, ends = columns.index, zip([0, *cuts], [*cuts, len(columns)], strict=True)
    kept = index.sample if sample is None else sample
    return [
        index_columns(
            *(np.ascontiguousarray(numbers(index)[:, a:b]), index.uid[a:b]),
            *(columns.spread, kept, index.rows),
        )
        for a, b in ends
    ]
