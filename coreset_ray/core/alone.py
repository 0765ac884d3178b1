"""Runs a method that selects by itself, without scores: over the whole pool or in each group."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coreset_ray.core.greedy import Greedy, greedy_turns, together
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import check_seed
from coreset_ray.core.rule import shares
from coreset_ray.core.selection import Selection, resolve_budget
from coreset_ray.core.whole_set import Given, WholeSet, choose_whole

Alone = Greedy | WholeSet


def select_alone(
    method: Alone,
    pool: Pool,
    budget: int | float,
    seed: int,
    *,
    group: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    target: np.ndarray | None = None,
    partitions: int = 1,
) -> Selection:
    """The rows a method keeps, in the order of choosing, in this process.

    group: (n,) integers from 0, of rows that are to be represented alike, -1 where a row takes no
    part; kept: rows that are
    chosen already, in their order: they shape the choice, count in no budget and are not chosen
    again; target: (t, m), images that the choice should resemble; partitions: of a method that
    needs all rows, see `choose_whole`.
    """
    start: dict[str, Any] = {"group": group, "kept": kept, "target": target}
    return select_budgets(method, pool, [budget], seed, partitions=partitions, **start)[0]


def select_budgets(
    method: Alone,
    pool: Pool,
    budgets: Sequence[int | float],
    seed: int,
    *,
    group: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    target: np.ndarray | None = None,
    partitions: int = 1,
) -> list[Selection]:
    """What `select_alone` gives at each of these budgets: by one run at the largest where the
    method is `in_one_go`, else by one for each."""
    check_seed(seed)
    before = check_kept(kept, len(pool))
    check_target(method, target, pool)
    if not isinstance(partitions, int) or partitions < 1:
        raise ValueError(f"partitions={partitions!r}: expected a whole number from 1 up")
    ks = [resolve_budget(budget, len(pool)) for budget in budgets]
    groups = np.zeros(len(pool), np.int64) if group is None else np.asarray(group)
    free = ~np.isin(np.arange(len(pool)), before) & (groups >= 0)
    for k in ks:
        check_room(k, int(free.sum()), len(before))
    sizes = np.bincount(groups[free])
    wanted = np.array([shares(k, sizes) for k in ks]).reshape(len(ks), len(sizes))
    once = in_one_go(method) and partitions == 1
    found: list[list[Selection]] = [[] for _ in ks]
    for g, of_budgets in enumerate(wanted.T.tolist()):
        number, given = np.flatnonzero(groups == g), Given(before[groups[before] == g], target)
        made: dict[int, Selection] = {}
        for share in sorted({*of_budgets} - {0}, reverse=True):
            if made and once:
                made[share] = made[max(made)].first(share)
            else:
                made[share] = _of_group(method, pool, number, share, seed, given, partitions)
        for place, share in enumerate(of_budgets):
            found[place] += [made[share]] if share else []
    return [in_turns(some) for some in found]


def in_one_go(method: Alone) -> bool:
    """Whether a larger budget's choice begins with a smaller one's, gains and weights included."""
    return isinstance(method, Greedy) or (method.nested and not method.weighs)


def _of_group(
    method: Alone,
    pool: Pool,
    number: np.ndarray,
    share: int,
    seed: int,
    given: Given,
    partitions: int,
) -> Selection:
    if isinstance(method, Greedy):
        picked = together(greedy_turns(method, pool, number, share, seed, kept=given.kept))
        return Selection(picked.number, picked.gain, np.ones(share))
    return choose_whole(method, pool, number, share, seed, given, partitions)


def in_turns(found: list[Selection]) -> Selection:
    """Each group's first, then each one's second, and so on."""
    turn = np.concatenate([np.empty(0, int), *(np.arange(len(f.rows)) for f in found)])
    order = np.argsort(turn, kind="stable")
    rows = np.concatenate([np.empty(0, np.int64), *(f.rows for f in found)])
    gains = np.concatenate([np.empty(0), *(f.gains for f in found)])
    weights = np.concatenate([np.empty(0), *(f.weights for f in found)])
    return Selection(rows[order], gains[order], weights[order])


def check_kept(kept: np.ndarray | None, n: int) -> np.ndarray:
    """(w,) int64; `ValueError` unless distinct rows of the pool."""
    rows = np.asarray([] if kept is None else kept)
    if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(
            f"kept has shape {rows.shape} and dtype {rows.dtype}: expected row numbers"
        )
    rows = rows.astype(np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= n or len(set(rows.tolist())) < len(rows)):
        raise ValueError(f"kept names a row twice, or one that is not from 0 to {n - 1}")
    return rows


def check_room(k: int, left: int, kept: int) -> None:
    """`ValueError` where more are asked for than are left beside those kept already."""
    if k > left:
        raise ValueError(f"budget of {k}: only {left} images are left beside {kept} kept already")


def check_target(method: Alone, target: np.ndarray | None, pool: Pool) -> None:
    """`ValueError` unless a target set is there where it is asked for, as wide as the pool."""
    asked = isinstance(method, WholeSet) and method.targeted
    if asked and (target is None or len(target) == 0):
        raise ValueError(
            "this method asks for a target set, images that the choice should resemble"
        )
    if target is None:
        return
    if not asked:
        raise ValueError("this method takes no target set: leave it out")
    width = pool["embedding"].shape[1]
    if np.ndim(target) != 2 or target.shape[1] != width:
        raise ValueError(
            f"the target set has shape {target.shape}: expected (t, {width}), as wide as the pool"
        )
    if not np.isfinite(target).all():
        raise ValueError("the target set holds a NaN or infinite value: leave such rows out")
