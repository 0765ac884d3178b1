"""Coreset selection for unlabeled images, at scale.

In a notebook, without Ray:

    import coreset_ray
    scores = coreset_ray.score(Z, method="blindcs", seed=0, draws=100_000)
    kept = coreset_ray.select(Z, 500, method="blindcs", seed=0, draws=100_000)
    kept.rows, kept.gains, kept.weights
    kept = coreset_ray.select(Z, 500, method="random", selector="ccs", group=cluster)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from coreset_ray import catalog
from coreset_ray.core.alone import check_kept, check_room, select_alone
from coreset_ray.core.filter import check_left, left_out
from coreset_ray.core.pool import Pool, pool_of
from coreset_ray.core.rule import Rule, check_group
from coreset_ray.core.run import score_columns, select_rows
from coreset_ray.core.selection import Selection, resolve_budget
from coreset_ray.version import __version__

__all__ = ["Selection", "__version__", "score", "select"]


def score(
    embedding: np.ndarray,
    *,
    method: str = "blindcs",
    seed: int = 0,
    uid: np.ndarray | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    **params: Any,
) -> np.ndarray:
    """Raw score of every row; the highest are the ones to keep.

    embedding: (n, m) floating point; uid: (n, 2) uint64 identities, by default the positions;
    signals: further columns that the method needs, each of n rows, e.g. `dynamics.margin`, (n, t);
    params: the method's hyper-parameters. Returns (n,) float64.
    Raises `ValueError` for an unknown method, a hyper-parameter out of range, or rows with NaN.
    """
    pool = pool_of(embedding, uid, signals)
    return score_columns(catalog.build(method, params), pool, seed)[0]["score"]


def select(
    embedding: np.ndarray,
    k: int | float,
    *,
    method: str = "blindcs",
    seed: int = 0,
    uid: np.ndarray | None = None,
    signals: Mapping[str, np.ndarray] | None = None,
    selector: str | None = None,
    settings: Mapping[str, Any] | None = None,
    group: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    target: np.ndarray | None = None,
    partitions: int = 1,
    filters: Sequence[str | tuple[str, Mapping[str, Any]]] = (),
    **params: Any,
) -> Selection:
    """The k rows to keep, best first: k is a count, or a fraction of the rows as a float.

    method: scores the rows, or selects by itself. selector, settings: which rule keeps what of the
    scores, by default the highest; group: (n,) integers from 0, of rows that are to be represented
    alike. kept: rows chosen already, which are not among the k and, of a method that selects by
    itself, shape the choice. Of such a method: target, (t, m), images that the choice should
    resemble; partitions: choose in two rounds, first in so many parts. filters: names, or names
    with settings, of what leaves images out first. Other arguments and errors as in `score`.
    """
    pool = pool_of(embedding, uid, signals)
    own = check_kept(kept, len(pool))
    group = _filtered(pool, k, check_group(group, len(pool)), filters, own)
    alone = catalog.selector_classes().get(method)
    if alone is not None and not issubclass(alone, Rule):
        if selector is not None or settings:
            raise ValueError(f"method {method!r} selects by itself: leave out selector, settings")
        built = catalog.build_selector(method, params)
        assert not isinstance(built, Rule)
        target = None if target is None else np.asarray(target)
        given = {"group": group, "kept": kept, "target": target, "partitions": partitions}
        return select_alone(built, pool, k, seed, **given)
    if target is not None or partitions != 1:
        raise ValueError(f"method {method!r} scores each image: leave out target and partitions")
    if len(own):
        group = np.zeros(len(pool), np.int64) if group is None else group.copy()
        group[own] = -1
        check_room(resolve_budget(k, len(pool)), int((group >= 0).sum()), len(own))
    if selector is None and group is None and not settings:
        return select_rows(catalog.build(method, params), pool, k, seed)
    rule = catalog.build_selector(selector or "top", dict(settings or {}), "settings")
    if not isinstance(rule, Rule):
        raise ValueError(f"selector={selector!r} selects by itself: give it as the method")
    return select_rows(catalog.build(method, params), pool, k, seed, rule, group)


def _filtered(
    pool: Pool,
    k: int | float,
    group: np.ndarray | None,
    filters: Sequence[str | tuple[str, Mapping[str, Any]]],
    kept: np.ndarray,
) -> np.ndarray | None:
    """The groups, -1 where a filter drops the row."""
    if not filters:
        return group
    named = [(f, {}) if isinstance(f, str) else f for f in filters]
    built = [catalog.build_filter(name, dict(p), f"filter {name}") for name, p in named]
    out = left_out(built, pool, kept)
    check_left(resolve_budget(k, len(pool)), int((~out).sum()), len(pool))
    return np.where(out, -1, 0 if group is None else group)
