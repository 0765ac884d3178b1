"""A pool of made-up rows with whatever columns a method needs: what a method is timed on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coreset_ray.core.pool import NEIGHBOR, Pool

_CENTRES = 1000
_CROWD = 50  # rows around a centre, at least


@dataclass(frozen=True)
class Widths:
    """Numbers of a row. dims: of `embedding`; neighbors: of `knn`; classes: of
    `proxy.probability`; hidden: of `proxy.feature`; patterns: of an image, each of so many
    `tokens` numbers in `patterns.pattern`."""

    dims: int
    neighbors: int = 50
    classes: int = 10
    hidden: int = 128
    patterns: int = 5
    tokens: int = 384

    def bytes(self, column: str) -> int:
        """Of a row of a column in memory."""
        width = self.numbers(column)
        return 4 * width if width > 1 and column != NEIGHBOR else 8 * width

    def numbers(self, column: str) -> int:
        """Of a row of a column."""
        return {
            "embedding": self.dims,
            "knn.neighbor": self.neighbors,
            "knn.similarity": self.neighbors,
            "proxy.probability": self.classes,
            "proxy.feature": self.hidden,
            "patterns.pattern": self.patterns * self.tokens,
        }.get(column, 1)


def can_make_up(needs: Sequence[str]) -> bool:
    """Whether `made_up` knows all these columns."""
    return set(needs) <= _MAKERS.keys()


def made_up(needs: Sequence[str], n: int, widths: Widths, seed: int = 0) -> Pool:
    """n rows around centres, in their order: embeddings, and neighbours, which are others of the
    same centre, follow them; probabilities lean to a class drawn for each row."""
    rng = np.random.default_rng(seed)
    rows = _Rows(rng, n, widths, max(1, min(_CENTRES, n // _CROWD)))
    uid = np.stack([np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64)], axis=1)
    return Pool(uid, {name: _MAKERS[name](rows) for name in needs})


class _Rows:
    def __init__(self, rng: np.random.Generator, n: int, widths: Widths, centres: int):
        self.rng, self.n, self.widths, self.centres = rng, n, widths, centres
        self.centre = np.sort(rng.integers(0, centres, n))
        self.label = rng.integers(0, widths.classes, n)

    def embedding(self) -> np.ndarray:
        means = self.rng.standard_normal((self.centres, self.widths.dims), np.float32)
        found = self.rng.standard_normal((self.n, self.widths.dims), np.float32)
        found += means[self.centre]
        return found

    def neighbor(self) -> np.ndarray:
        first = np.searchsorted(self.centre, np.arange(self.centres))
        size = np.bincount(self.centre, minlength=self.centres)
        drawn = self.rng.random((self.n, self.widths.neighbors), np.float32)
        return first[self.centre][:, None] + (drawn * size[self.centre][:, None]).astype(np.int64)

    def similarity(self) -> np.ndarray:
        drawn = self.rng.uniform(0.3, 0.9, (self.n, self.widths.neighbors))
        return -np.sort(-drawn, axis=1).astype(np.float32)

    def probability(self) -> np.ndarray:
        found = self.rng.standard_normal((self.n, self.widths.classes), np.float32)
        found[np.arange(self.n), self.label] += 3
        np.exp(found, out=found)
        found /= found.sum(axis=1, keepdims=True)
        return found

    def feature(self) -> np.ndarray:
        found = self.rng.standard_normal((self.n, self.widths.hidden), np.float32)
        return np.maximum(found, 0, out=found)

    def pattern(self) -> np.ndarray:
        shape = self.n, self.widths.patterns, self.widths.tokens
        found = self.rng.standard_normal(shape, np.float32)
        found += self.rng.standard_normal((self.centres, *shape[1:]), np.float32)[self.centre]
        found /= np.linalg.norm(found, axis=2, keepdims=True)
        return found.reshape(self.n, -1)


_MAKERS = {
    "embedding": _Rows.embedding,
    NEIGHBOR: _Rows.neighbor,
    "knn.similarity": _Rows.similarity,
    "proxy.probability": _Rows.probability,
    "proxy.feature": _Rows.feature,
    "proxy.label": lambda rows: rows.label,
    "pseudo_labels.label": lambda rows: rows.label,
    "patterns.pattern": _Rows.pattern,
    "clusters.cluster": lambda rows: rows.centre,
}
