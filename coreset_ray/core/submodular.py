"""Submodular functions of a set of rows, with what is chosen as their state. What maximises them
is `core.maximize`, which knows no function by name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from coreset_ray.core.directions import Directions, blocks
from coreset_ray.core.exact import dots, whole_sum
from coreset_ray.core.similarity import Kernel, Sparse


class Function(ABC):
    """f(S) of the rows taken so far, f(∅) = 0."""

    def __init__(self) -> None:
        self._value = 0.0

    @abstractmethod
    def gain(self, rows: np.ndarray) -> np.ndarray:
        """f(S ∪ {j}) - f(S) of rows j, none taken yet: (r,) int64 → (r,) float64, each alone."""

    @abstractmethod
    def add(self, row: int) -> None:
        """Updates the state for a row that is taken."""

    def take(self, row: int) -> None:
        self._value += float(self.gain(np.array([row]))[0])
        self.add(row)

    def value(self) -> float:
        return self._value

    def after(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Itself once these rows are taken, one after another."""
        for row in rows:
            self.take(int(row))
        return self


class FacilityLocation(Function):
    """How well clients are served by the best row taken: f(S) = Σ_i max_{j ∈ S} s_ij.

    More generally f(S) = Σ_i max(min(max_{j ∈ S} s_ij, cap_i) - floor_i, 0) + Σ_{j ∈ S} extra_j,
    which holds the information measures as well. floor, cap: (c,) float64, 0 and no cap by
    default; extra: (n,) float64, none by default. Monotone; gains never rise, not even in their
    last bit, for sums go over clients in order.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        floor: np.ndarray | None = None,
        cap: np.ndarray | None = None,
        extra: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.kernel, self.extra = kernel, extra
        self.level = np.zeros(kernel.clients) if floor is None else floor.astype(np.float64)
        self.cap = np.full(kernel.clients, np.inf) if cap is None else cap.astype(np.float64)

    def gain(self, rows: np.ndarray) -> np.ndarray:
        found = self.kernel.excess(rows, self.level, self.cap)
        return found if self.extra is None else found + self.extra[rows]

    def add(self, row: int) -> None:
        self.kernel.lift(row, self.level, self.cap)


class Sums(Protocol):
    """Sums of similarities of each row, as graph cut needs them."""

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """To all rows of the pool, (r,) float64."""
        ...

    def own(self, rows: np.ndarray) -> np.ndarray:
        """To itself."""
        ...

    def near(self, rows: np.ndarray) -> np.ndarray:
        """To the rows added."""
        ...

    def add(self, row: int) -> None: ...


class NeighborSums:
    """Over a sparse, symmetric kernel. O(degree) a row."""

    def __init__(self, kernel: Sparse) -> None:
        self.kernel, self.total = kernel, kernel.sums()
        self.added = np.zeros(len(self.total))

    def whole(self, rows: np.ndarray) -> np.ndarray:
        return self.total[rows]

    def own(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows))

    def near(self, rows: np.ndarray) -> np.ndarray:
        return self.added[rows]

    def add(self, row: int) -> None:
        client, similarity = self.kernel.of(row)
        self.added[client] += similarity


class LinearSums:
    """Over all pairs, s = (1 + cos) / 2, which is linear in either row: no pair is ever formed.

    of: on a grid so coarse (`linear_bits`) that sums over the pool are exact. O(width) a row.
    """

    def __init__(self, of: Directions) -> None:
        self.of, bits, every = of, linear_bits(len(of)), np.arange(len(of))
        total, square = np.zeros(of.width, np.int64), np.empty(len(of))
        for rows in blocks(every, of.width):
            found = of.take(rows)
            total += whole_sum(found, bits)
            square[rows] = np.einsum("ij,ij->i", found, found, dtype=np.float64)
        self.self_similarity = (1 + square) / 2
        self.total = (len(of) + self._along(every, total * 2.0**-bits)) / 2
        self.count, self.sum = 0, np.zeros(of.width)

    def whole(self, rows: np.ndarray) -> np.ndarray:
        return self.total[rows]

    def own(self, rows: np.ndarray) -> np.ndarray:
        return self.self_similarity[rows]

    def near(self, rows: np.ndarray) -> np.ndarray:
        return (self.count + self._along(rows, self.sum)) / 2

    def add(self, row: int) -> None:
        self.count += 1
        self.sum += self.of.take(np.array([row]))[0]

    def _along(self, rows: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Inner products with a sum of rows, (r,) float64."""
        found = [dots(self.of.take(some), total[None])[:, 0] for some in blocks(rows, len(total))]
        return np.concatenate([np.empty(0), *found])


def linear_bits(count: int) -> int:
    """Bits of a grid on which inner products of a row with sums of so many rows are exact."""
    return min(20, (53 - int(count).bit_length()) // 2)


class GraphCut(Function):
    """Similarity to the pool less that among what is taken:
    f(S) = Σ_{i ∈ V} Σ_{j ∈ S} s_ij - redundancy · (Σ_{i, j ∈ S} s_ij + 2 Σ_{j ∈ S} before_j).

    before: (n,) float64, similarity to what lies outside S, none by default. Submodular, and
    monotone for a redundancy of at most 1/2 and nothing before.
    """

    def __init__(self, sums: Sums, redundancy: float, before: np.ndarray | None = None) -> None:
        super().__init__()
        self.sums, self.redundancy, self.before = sums, redundancy, before

    def gain(self, rows: np.ndarray) -> np.ndarray:
        near = self.sums.near(rows)
        if self.before is not None:
            near = near + self.before[rows]
        return self.sums.whole(rows) - self.redundancy * (2 * near + self.sums.own(rows))

    def add(self, row: int) -> None:
        self.sums.add(row)


class Modular(Function):
    """A worth of each row by itself: f(S) = Σ_{j ∈ S} worth_j. worth: (n,) float64."""

    def __init__(self, worth: np.ndarray) -> None:
        super().__init__()
        self.worth = worth

    def gain(self, rows: np.ndarray) -> np.ndarray:
        return self.worth[rows]

    def add(self, row: int) -> None:
        pass
