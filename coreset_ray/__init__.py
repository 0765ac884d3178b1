"""Coreset selection for unlabeled images, at scale.

In a notebook, without Ray:

    import coreset_ray
    scores = coreset_ray.score(Z, method="blindcs", seed=0, draws=100_000)
    kept = coreset_ray.select(Z, 500, method="blindcs", seed=0, draws=100_000)
    kept.rows, kept.gains, kept.weights
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from coreset_ray import catalog
from coreset_ray.core.pool import pool_of
from coreset_ray.core.run import score_columns, select_rows
from coreset_ray.core.selection import Selection
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
    **params: Any,
) -> Selection:
    """The k rows to keep, best first: k is a count, or a fraction of the rows as a float.

    Other arguments and errors as in `score`.
    """
    pool = pool_of(embedding, uid, signals)
    return select_rows(catalog.build(method, params), pool, k, seed)
