"""Linear probe: how far frozen embeddings of a coreset go, in seconds and without a GPU."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True)
class ProbeResult:
    """accuracy: share of test images classified right; converged: the optimum was reached."""

    accuracy: float
    converged: bool


def linear_probe(
    train: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
    test: np.ndarray,
    truth: np.ndarray,
    *,
    l2: float,
    max_iterations: int,
) -> ProbeResult:
    """Fits multinomial logistic regression on a coreset and scores it on the test images.

    Minimises mean(weight · cross-entropy) + l2·½‖W‖² on columns standardised by the coreset's
    own mean and deviation. The problem is convex: the answer depends on no seed.

    train: (k, m); labels: (k,) integers; weights: (k,) or None for ones; test: (n, m); truth:
    (n,). A coreset of one class predicts that class.
    """
    if len(np.unique(labels)) == 1:
        return ProbeResult(float((truth == labels[0]).mean()), True)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation == 0] = 1.0
    model = LogisticRegression(C=1.0 / (l2 * len(train)), max_iter=max_iterations, tol=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit((train - mean) / deviation, labels, sample_weight=weights)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    return ProbeResult(float(model.score((test - mean) / deviation, truth)), converged)
