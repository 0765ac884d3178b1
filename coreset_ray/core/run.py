"""Runs a method on a pool in this process: the reference that every other runner must equal."""

from typing import Any

import numpy as np

from coreset_ray.core.method import PerSample, Sampled, Scorer
from coreset_ray.core.pool import Pool, uid_order
from coreset_ray.core.random import check_seed
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
    order = uid_order(view.uid)
    prepared = method.prepare(view.take(order))
    total = method.tally(prepared, seed, 0, method.draws)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    columns = {name: column[back] for name, column in method.columns(total).items()}
    return columns, method.facts(prepared)


def select_rows(method: Scorer, pool: Pool, budget: int | float, seed: int) -> Selection:
    """Scores the pool and keeps the best."""
    k = resolve_budget(budget, len(pool))
    score = score_columns(method, pool, seed)[0]["score"]
    rows = top_rows(method.rank_key(score, pool.uid, seed), pool.uid, k)
    weights = method.weight(score[rows], float(score.min()), float(score.max()))
    return Selection(rows, score[rows], weights)
