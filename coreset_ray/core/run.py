"""Runs a method on a pool in this process: the reference that every other runner must equal."""

from collections.abc import Generator
from typing import Any

import numpy as np

from coreset_ray.core.columns import Columns, columns_of
from coreset_ray.core.method import PerSample, Sampled, Scorer
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import check_seed
from coreset_ray.core.rule import Rule, choose_rows
from coreset_ray.core.selection import Selection, resolve_budget, top_rows


def score_columns(
    method: Scorer, pool: Pool, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The method's columns, each (n,) float64 in the pool's order, and its facts of the run."""
    check_seed(seed)
    view = pool.restrict(method.needs)
    if isinstance(method, PerSample):
        return {"score": method.score(view, seed)}, {}
    assert isinstance(method, Sampled), f"no runner for {type(method).__name__}"
    columns = columns_of(view)
    method.check(columns)
    total = empty_total(method, columns)
    method.tally(columns, seed, 0, method.draws, total)
    return method.columns(total.sum(axis=0)), method.facts(columns)


def empty_total(method: Sampled, columns: Columns) -> np.ndarray:
    """(2, channels, n) int64 of zeros."""
    return np.zeros((2, method.channels, len(columns)), np.int64)


def tally_shards(
    method: Sampled, shards: list[Columns], seed: int, first: int, last: int
) -> list[np.ndarray]:
    """Each shard's sum over draws first … last - 1, shards taking turns in this process."""
    totals = [empty_total(method, columns) for columns in shards]
    runs = [
        method.tally_shard(columns, seed, first, last, total)
        for columns, total in zip(shards, totals, strict=True)
    ]
    messages = [next(run, None) for run in runs]
    while messages[0] is not None:
        agreed = method.agree(messages)
        messages = [resume(run, agreed) for run in runs]
    return totals


def resume(run: Generator[Any, Any, None], agreed: Any) -> Any:
    """The next message of a shard, None once it has ended."""
    try:
        return run.send(agreed)
    except StopIteration:
        return None


def select_rows(
    method: Scorer,
    pool: Pool,
    budget: int | float,
    seed: int,
    rule: Rule | None = None,
    group: np.ndarray | None = None,
) -> Selection:
    """Scores the pool and keeps what the rule keeps, by default the best.

    group: (n,) integers from 0, of rows that are to be represented alike.
    """
    k = resolve_budget(budget, len(pool))
    score = score_columns(method, pool, seed)[0]["score"]
    key = method.rank_key(score, pool.uid, seed)
    if rule is None and group is None:
        rows = top_rows(key, pool.uid, k)
    else:
        assert rule is not None, "groups need a rule"
        rows = choose_rows(rule, key, pool.uid, k, seed, group)
    weights = method.weight(score[rows], float(score.min()), float(score.max()))
    return Selection(rows, score[rows], weights)
