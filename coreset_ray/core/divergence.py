"""How far two predictions are apart: Kullback-Leibler divergence, the mean of both directions.

½ KL(p ‖ q) + ½ KL(q ‖ p) = ½ Σ_c (p_c - q_c)(log p_c - log q_c). Probabilities and logarithms are
rounded to grids on which sums of products are exact, so that blocks and threads do not matter;
rounding keeps every term at 0 or above, and alike rows at 0.
"""

import numpy as np

from coreset_ray.core.exact import BITS, dots

_LEAST = np.finfo(np.float32).tiny  # stands for probabilities below it, whose logarithm is -87.3
_SPAN = 128.0  # a power of two above any logarithm
FARTHEST = 88.0  # no two predictions are farther apart


def on_grid(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, (n, c) → themselves and their logarithms over 128, float32, on the grid."""
    p = np.rint(probability.astype(np.float64) * 2.0**BITS) * 2.0**-BITS
    log = np.log(np.maximum(probability, _LEAST), dtype=np.float64) / _SPAN
    return p.astype(np.float32), (np.rint(log * 2.0**BITS) * 2.0**-BITS).astype(np.float32)


def divergences(
    p: np.ndarray, log: np.ndarray, others: np.ndarray, others_log: np.ndarray
) -> np.ndarray:
    """Of all pairs: (n, c) twice, (b, c) twice, as `on_grid` has them → (n, b) float64."""
    found = -dots(p, others_log)
    found -= dots(log, others)
    found += _own(p, log)[:, None]
    found += _own(others, others_log)
    return np.maximum(found * (_SPAN / 2), 0)


def row_divergences(
    p: np.ndarray, log: np.ndarray, others: np.ndarray, others_log: np.ndarray
) -> np.ndarray:
    """Of row i and the other row i: all (n, c) → (n,) float64."""
    apart, log_apart = p.astype(np.float64) - others, log.astype(np.float64) - others_log
    return np.einsum("ij,ij->i", apart, log_apart) * (_SPAN / 2)


def _own(p: np.ndarray, log: np.ndarray) -> np.ndarray:
    """⟨p_i, log_i⟩ of each row, (n,) float64."""
    return np.einsum("ij,ij->i", p, log, dtype=np.float64)
