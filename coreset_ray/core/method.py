"""The shapes of a method. A method is one frozen dataclass in one file; its fields are its
hyper-parameters, and the file's name is the method's name.

Local and distributed runners call the same functions of these shapes, so what a method gives
does not depend on where it ran.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from coreset_ray.core.columns import Columns
from coreset_ray.core.pool import Pool


class Method(ABC):
    """needs: the columns it may see: `embedding`, and SIGNAL.COLUMN for what `coreset-ray signals`
    writes. family: what it goes by, as in the surveys. source: where its equations stand. cost: in
    the legend's letters. seeded: whether the answer depends on the seed, in an
    instance with its settings.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}  # no unknown settings

    needs: ClassVar[tuple[str, ...]]
    family: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    seeded: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        """Its hyper-parameters by name, from which the catalog builds it again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


class Scorer(Method):
    """A method that gives every image one number; the highest are kept.

    selector: the selector, and its settings, that goes with it where none is chosen.
    """

    selector: ClassVar[tuple[str, Mapping[str, Any]]] = ("top", {})

    def rank_key(self, score: np.ndarray, uid: np.ndarray, seed: int) -> np.ndarray:
        """What the ranking sorts by: (n,) scores → (n,) float64. The score itself by default."""
        return score

    def weight(self, score: np.ndarray, low: float, high: float) -> np.ndarray:
        """Loss weight of rows with these scores; low and high span the pool's scores."""
        return np.ones(len(score))


class PerSample(Scorer):
    """Each row's score depends on that row alone: mapped over blocks of any size."""

    @abstractmethod
    def score(self, block: Pool, seed: int) -> np.ndarray:
        """Scores of a block's rows, (rows,) float64."""


class Sampled(Scorer):
    """A sum over t independent draws on a pool's embeddings, split over workers in any way.

    Sums are of integers, so they are exact in any order; draw number i is a function of
    (seed, i) alone, and nothing depends on the order of rows.
    """

    channels: ClassVar[int]
    draws: int

    def check(self, columns: Columns) -> None:
        """`ValueError` where this pool and these settings do not go together."""

    @abstractmethod
    def tally(self, columns: Columns, seed: int, first: int, last: int, total: np.ndarray) -> None:
        """Adds draws first … last - 1 to total, (2, channels, n) int64: two independent halves.

        columns: the whole pool.
        """

    @abstractmethod
    def tally_shard(
        self, columns: Columns, seed: int, first: int, last: int, total: np.ndarray
    ) -> Generator[Any, Any, None]:
        """`tally` for one shard of a pool's rows: yields what this shard knows and is sent what
        `agree` made of all shards' messages, until it ends, in all shards at once."""

    @abstractmethod
    def agree(self, messages: list[Any]) -> Any:
        """What all shards are sent in reply to one message of each."""

    @abstractmethod
    def columns(self, total: np.ndarray) -> dict[str, np.ndarray]:
        """(channels, n) sum over draws → named (n,) float64 columns, `score` among them."""

    def draw_bytes(self, rows: int) -> float:
        """Bytes of the columns of so many rows that a draw reads, on average; 0 where unknown."""
        return 0.0

    def facts(self, columns: Columns) -> dict[str, Any]:
        """What the run record should say of this pool (JSON-able)."""
        return {}
