"""Vectors of length 1 whose cosines say how alike rows are: those of embeddings, or of gradients of
a classifier's last layer, which stay in their two factors.

n rows of `width` numbers. Entries lie on the grid of `core/exact.py`.
"""

from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np

from coreset_ray.core.exact import BITS, dots, grid_rows
from coreset_ray.core.gradients import gradients_of
from coreset_ray.core.pool import Pool

Similarity = Literal["embeddings", "gradients"]
Rows = np.ndarray | slice
NEIGHBORS = ("knn.neighbor", "knn.similarity")
_BLOCK = 1 << 22  # numbers of vectors in full at a time


class Directions(Protocol):
    """n vectors. One of zeros stays one."""

    width: int

    def __len__(self) -> int: ...

    def take(self, rows: Rows) -> np.ndarray:
        """Of these rows in full, (r, width) float32."""
        ...

    def cosines(self, rows: Rows, others: Rows) -> np.ndarray:
        """(r, o) float64, each the same whatever else is asked for."""
        ...


class OfEmbeddings:
    def __init__(self, embedding: np.ndarray, bits: int = BITS) -> None:
        self.rows = grid_rows(embedding, bits)
        self.width = self.rows.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Rows) -> np.ndarray:
        return self.rows[rows]

    def cosines(self, rows: Rows, others: Rows) -> np.ndarray:
        return dots(self.rows[rows], self.rows[others])


class OfGradients:
    """g_i = residual_i ⊗ feature_i: c + h + 1 numbers a row, c·(h + 1) of a vector in full."""

    def __init__(self, pool: Pool, bits: int = BITS) -> None:
        found = gradients_of(pool, pool["proxy.label"])
        self.residual, self.feature, self.bits = found.residual, found.feature, bits
        self.width = self.residual.shape[1] * self.feature.shape[1]

    def __len__(self) -> int:
        return len(self.residual)

    def take(self, rows: Rows) -> np.ndarray:
        left = self.residual[rows].astype(np.float64)
        found = (left[:, :, None] * self.feature[rows][:, None, :]).reshape(len(left), self.width)
        return (np.rint(found * 2.0**self.bits) * 2.0**-self.bits).astype(np.float32)

    def cosines(self, rows: Rows, others: Rows) -> np.ndarray:
        found = dots(self.residual[rows], self.residual[others])
        found *= dots(self.feature[rows], self.feature[others])
        return found


def directions(pool: Pool, similarity: Similarity, bits: int = BITS) -> Directions:
    if similarity == "gradients":
        return OfGradients(pool, bits)
    return OfEmbeddings(pool["embedding"], bits)


class SimilarityNeeds:
    """The columns that a method needs, by its fields `similarity` and, where it has one, `kernel`:
    neighbors of embeddings are a signal, those of gradients are found by the method."""

    def __get__(self, method: Any, kind: type) -> tuple[str, ...]:
        of = kind if method is None else method
        if of.similarity == "gradients":
            return ("proxy.probability", "proxy.feature", "proxy.label")
        sparse = getattr(of, "kernel", "dense") == "neighbors"
        return NEIGHBORS if sparse else ("embedding",)


def blocks(rows: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Of row numbers, as many at a time as may be taken in full."""
    step = max(1, _BLOCK // width)
    for first in range(0, len(rows), step):
        yield rows[first : first + step]
