"""What rounding the embeddings does to scores."""

from dataclasses import replace
from typing import Any

import numpy as np

from coreset_ray.core.method import Sampled
from coreset_ray.core.pool import pool_of
from coreset_ray.core.run import score_columns

DRAWS = 2000  # at most; a draw that changes does so whatever the others do


def rounding_effect(
    method: Sampled, seed: int, embedding: np.ndarray, dtype: str
) -> dict[str, Any]:
    """The same draws over the same rows, as they are and rounded.

    embedding: (n, m) float32. Returns the number of rows and draws, and by column of the method
    the Pearson correlation of both, NaN where either does not vary.
    """
    some = replace(method, draws=min(method.draws, DRAWS))  # type: ignore[type-var]
    exact, rounded = (
        score_columns(some, pool_of(rows), seed)[0] for rows in (embedding, embedding.astype(dtype))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = {n: float(np.corrcoef(exact[n], rounded[n])[0, 1]) for n in exact}
    return {"rows": len(embedding), "draws": some.draws, "correlation": alike}
