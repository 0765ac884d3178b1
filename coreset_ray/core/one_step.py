"""What one step of gradient descent on some images does to the loss of others, to first order."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.gradients import Gradients, outer_sum
from coreset_ray.core.pool import Pool
from coreset_ray.core.selection import Selection, top_rows
from coreset_ray.core.whole_set import Given, WholeSet

_LEAST = np.finfo(np.float32).tiny  # stands for probabilities below it


@dataclass(frozen=True)
class Judges:
    """Rows whose mean loss counts. of: their gradients, of which the features are read;
    probability: (v, c) now; label: (v,)."""

    of: Gradients
    probability: np.ndarray
    label: np.ndarray

    def gradient(self, step: np.ndarray) -> np.ndarray:
        """The gradient of their mean cross-entropy once `step` is taken off the last layer's
        weights: (c, h + 1) → (c, h + 1) float64. O(v·c·h)."""
        logit = np.log(np.maximum(self.probability, _LEAST), dtype=np.float64)
        logit -= self.of.outputs(step)
        left = np.exp(logit - logit.max(axis=1, keepdims=True))
        left /= left.sum(axis=1, keepdims=True)
        rows = np.arange(len(left))
        left[rows, self.label] -= 1
        left *= self.of.stretch[:, None] / len(left)
        return outer_sum(left, self.of.feature, rows)


def one_step_greedy(
    judges: Judges,
    candidates: Gradients,
    uid: np.ndarray,
    free: np.ndarray,
    begun: np.ndarray,
    k: int,
    *,
    rate: float,
    refresh: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k free rows that lower the judges' loss most, and the gain of each in its turn.

    candidates: gradients of all n rows; free: (n,) bool; begun: rows chosen before. After every
    `refresh` choices the step is rate · the mean gradient of all chosen, and the gain of row i
    rate · ⟨judges' gradient after it, g_i⟩; equal gains go to the smaller uid.
    """
    free, chosen = free.copy(), list(begun)
    rows, gains = [np.empty(0, np.int64)], [np.empty(0)]
    while k:
        step = rate * _mean(candidates, np.array(chosen, np.int64))
        left = np.flatnonzero(free)
        gain = rate * candidates.along(judges.gradient(step))[left]
        best = top_rows(gain, uid[left], min(refresh, k))
        rows.append(left[best])
        gains.append(gain[best])
        free[left[best]] = False
        chosen.extend(left[best])
        k -= len(best)
    return np.concatenate(rows), np.concatenate(gains)


def _mean(of: Gradients, rows: np.ndarray) -> np.ndarray:
    return of.total(np.full(len(rows), 1 / max(len(rows), 1)), rows)


@dataclass(frozen=True)
class OneStep(WholeSet):
    """Chooses what lowers the loss of some rows after one step of `rate` on what is chosen, which
    is computed anew after every `refresh` choices."""

    rate: float = 0.1
    refresh: int = 20

    needs: ClassVar[tuple[str, ...]] = ("proxy.probability", "proxy.feature", "proxy.label")
    family: ClassVar[str] = "bilevel"
    cost: ClassVar[str] = "O(n·c·h·k / refresh)"
    seeded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.rate < np.inf:
            raise ValueError(f"rate={self.rate}: expected a number above 0")
        if self.refresh < 1:
            raise ValueError(f"refresh={self.refresh}: expected at least 1")

    @abstractmethod
    def sides(self, pool: Pool, kept: np.ndarray) -> tuple[Judges, Gradients, np.ndarray]:
        """Whose loss counts, the gradients of all rows as candidates, and the rows that the first
        step is taken on. kept: rows that are chosen already."""

    def beside(self, width: Mapping[str, int]) -> int:
        return 48 * width["proxy.probability"]

    def work(self, n: int, k: int) -> float:
        return float(n) * -(-k // self.refresh)

    def choose(self, pool: Pool, k: int, seed: int, given: Given) -> Selection:
        judges, candidates, begun = self.sides(pool, given.kept)
        free = np.ones(len(pool), bool)
        free[given.kept] = False
        rows, gains = one_step_greedy(
            *(judges, candidates, pool.uid, free, begun, k), rate=self.rate, refresh=self.refresh
        )
        return Selection(rows, gains, np.ones(k))
