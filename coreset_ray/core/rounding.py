"""What rounding the embeddings does to scores."""

from typing import Any

import numpy as np

from coreset_ray.core.columns import columns_of
from coreset_ray.core.method import Sampled
from coreset_ray.core.pool import pool_of
from coreset_ray.core.run import empty_total

DRAWS = 2000  # at most; a draw that changes does so whatever the others do


def rounding_effect(
    method: Sampled, seed: int, embedding: np.ndarray, dtype: str
) -> dict[str, Any]:
    """The same draws over the same rows, as they are and rounded.

    embedding: (n, m) float32. Returns the number of rows and draws, and by column of the method
    the Pearson correlation of both, NaN where either does not vary.
    """
    draws = min(method.draws, DRAWS)
    totals = []
    for rows in (embedding, embedding.astype(dtype)):
        columns = columns_of(pool_of(rows))
        method.check(columns)
        total = empty_total(method, columns)
        method.tally(columns, seed, 0, draws, total)
        totals.append(method.columns(total.sum(axis=0)))
    exact, rounded = totals
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = {n: float(np.corrcoef(exact[n], rounded[n])[0, 1]) for n in exact}
    return {"rows": len(embedding), "draws": draws, "correlation": alike}
