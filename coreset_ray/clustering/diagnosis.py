"""How well clusters fit true classes: for diagnosis, the only place that sees true labels."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


def clustering_scores(label: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """acc: share of rows that are right under the best one-to-one match of clusters to classes
    (Hungarian); nmi: normalised mutual information; ari: adjusted Rand index.

    label, truth: (n,) of any values. Raises `ValueError` where their lengths differ.
    """
    if len(label) != len(truth) or len(label) == 0:
        raise ValueError(
            f"{len(label)} labels and {len(truth)} true classes: expected one of each for every row"
        )
    table = contingency_matrix(truth, label)
    acc = table[linear_sum_assignment(table, maximize=True)].sum() / len(label)
    return {
        "acc": float(acc),
        "nmi": float(normalized_mutual_info_score(truth, label)),
        "ari": float(adjusted_rand_score(truth, label)),
    }
