"""Selection rules: from a ranking by score to what is kept, over the whole pool or each group.

A rule never sees the pool at once. It is told the scores at a few positions of the ranking, says
which stratum each row belongs to and by what key the rows of a stratum are kept, and how the
budget is shared between strata. Whoever runs it counts, here in one process, elsewhere over the
cluster.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from coreset_ray.core.method import Method
from coreset_ray.core.pool import uid_order

_MOST_GROUPS = 1 << 24  # a count of each is held


@dataclass(frozen=True)
class Ranked:
    """Rows of a ranking, highest score first, ties to the smallest uid.

    score: (rows,) float64; uid: (rows, 2) uint64. For each of the rule's r cuts: value (r, rows),
    the score at that position of the ranking of the row's group; past (r, rows), whether the row
    stands at that position or after it.
    """

    score: np.ndarray
    uid: np.ndarray
    value: np.ndarray
    past: np.ndarray


class Rule(Method):
    """What is kept of a ranking. reason: what the manifest says of each kept row; strata: into
    which a ranking is divided, at most. searched: the setting that may be `auto`, to be found by
    trying its `candidates` on pseudo-labels."""

    needs: ClassVar[tuple[str, ...]] = ()
    reason: ClassVar[str]
    searched: ClassVar[str | None] = None

    @property
    def divisions(self) -> int:
        """Strata of a group."""
        return 1

    def capacity(self, n: int) -> int:
        """How many of n ranked rows it may keep."""
        return n

    def cuts(self, n: int) -> tuple[int, ...]:
        """Positions, from 0, of a ranking of n ≥ 1 rows that it must know; always as many."""
        return ()

    def assign(self, rows: Ranked) -> np.ndarray:
        """Which stratum each row belongs to, (rows,) int64; -1 where it may not be kept."""
        return np.zeros(len(rows.score), np.int64)

    @abstractmethod
    def key(self, rows: Ranked, seed: int) -> np.ndarray:
        """What the rows of a stratum are kept by, highest first: (rows,) float64."""

    def candidates(self, keep: float) -> tuple[float, ...]:
        """Values to try for the setting that is searched, where a share `keep` is kept."""
        return ()


def hardest(beta: float, n: int) -> int:
    """⌊beta · n⌋, of the numbers as they are written: ⌊0.29 · 100⌋ is 29."""
    return int(beta * n * (1 + 1e-14) + 1e-9)


def tenths(keep: float) -> tuple[float, ...]:
    """The hard rates 0, 0.1, … that leave room for a share `keep` (ELFS, appendix D)."""
    return tuple(b / 10 for b in range(10) if b / 10 + keep <= 1 + 1e-9)


def check_share(name: str, value: float) -> None:
    """`ValueError` unless 0 ≤ value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}={value}: expected a share from 0 to below 1")


def check_group(group: np.ndarray | None, n: int) -> np.ndarray | None:
    """The groups themselves; `ValueError` unless (n,) integers from 0."""
    if group is None:
        return None
    group = np.asarray(group)
    if group.shape != (n,) or not np.issubdtype(group.dtype, np.integer) or group.min() < 0:
        raise ValueError(
            f"group has shape {group.shape} and dtype {group.dtype}: expected ({n},) integers "
            "from 0 up"
        )
    if group.max() >= _MOST_GROUPS:
        raise ValueError(f"group holds {group.max()}: number groups from 0 without large gaps")
    return group.astype(np.int64)


def shares(k: int, capacity: np.ndarray) -> np.ndarray:
    """k shared between strata, as evenly as what each can give allows: the smallest first, each
    the lesser of what it has and of what is left ÷ strata left (CCS, Zheng et al., 2023).

    capacity: (s,) int64 with a sum of at least k. Returns (s,) int64 with a sum of k.
    """
    share = np.zeros(len(capacity), np.int64)
    left = k
    for i, place in enumerate(np.argsort(capacity, kind="stable")):
        share[place] = min(capacity[place], left // (len(capacity) - i))
        left -= share[place]
    assert left == 0, f"{left} of {k} find no room"
    return share


def budgets(rule: Rule, k: int, sizes: np.ndarray) -> np.ndarray:
    """k shared between groups of these sizes, (g,); `ValueError` where the rule keeps fewer."""
    capacity = np.array([rule.capacity(int(n)) if n else 0 for n in sizes], np.int64)
    if k > capacity.sum():
        raise ValueError(
            f"{rule} keeps at most {capacity.sum()} of {sizes.sum()} images, and the budget is "
            f"{k}: lower the budget or what the rule drops"
        )
    return shares(k, capacity)


def choose_rows(
    rule: Rule, score: np.ndarray, uid: np.ndarray, k: int, seed: int, group: np.ndarray | None
) -> np.ndarray:
    """The k rows that the rule keeps, by its key, best first; ties to the smallest uid.

    score: (n,) float64 without NaN; uid: (n, 2) uint64; group: (n,) int, numbers from 0, of rows
    that are to be represented alike, -1 where one takes no part, or None. Returns (k,) int64.
    O(n log n).
    """
    groups = np.zeros(len(score), np.int64) if group is None else np.asarray(group)
    sizes = np.bincount(groups[groups >= 0])
    kept, keys = [], []
    for g, share in enumerate(budgets(rule, k, sizes)):
        if not share:
            continue
        rows = np.flatnonzero(groups == g)
        rows = rows[np.lexsort((uid[rows, 1], uid[rows, 0], -score[rows]))]
        at = np.array(rule.cuts(len(rows)), np.int64)
        value = np.broadcast_to(score[rows][at][:, None], (len(at), len(rows)))
        ranked = Ranked(score[rows], uid[rows], value, np.arange(len(rows)) >= at[:, None])
        strata, key = rule.assign(ranked), rule.key(ranked, seed)
        room = np.bincount(strata[strata >= 0], minlength=rule.divisions)
        for stratum, quota in enumerate(shares(int(share), room)):
            inside = np.flatnonzero(strata == stratum)
            inside = inside[_by_key(key[inside], ranked.uid[inside])][:quota]
            kept.append(rows[inside])
            keys.append(key[inside])
    chosen = np.concatenate([np.empty(0, np.int64), *kept])
    return chosen[_by_key(np.concatenate([np.empty(0), *keys]), uid[chosen])]


def _by_key(key: np.ndarray, uid: np.ndarray) -> np.ndarray:
    order = uid_order(uid)
    return order[np.argsort(-key[order], kind="stable")]
