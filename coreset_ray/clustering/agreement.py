"""Labels from many heads: clusters matched to those of one head, then averaged.

Heads number their clusters as their random start had it, so a mean over heads means nothing until
the numbers are matched. The papers print the mean and leave the matching out.
"""

from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

_ALL_MASS = 0.99


def contingency(probability: torch.Tensor, reference: int) -> torch.Tensor:
    """(h, b, c) → (h, c, c) float64: Σ_x p_h(i|x) p_r(j|x), of clusters i of each head with
    clusters j of the reference. Sums over blocks of rows add up."""
    return torch.einsum("hbi,bj->hij", probability.double(), probability[reference].double())


def matched(table: np.ndarray) -> np.ndarray:
    """For each head which of its clusters answers each cluster of the reference, (h, c) int64:
    the one-to-one match of greatest mass (Hungarian). table: (h, c, c), see contingency."""
    return np.stack([linear_sum_assignment(head.T, maximize=True)[1] for head in table])


def usage(probability: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of (h, b, c): (h, c) sums of probability, and rows whose likeliest cluster it is."""
    return probability.double().sum(1), counts(probability.argmax(-1), probability.shape[2])


def counts(label: torch.Tensor, classes: int) -> torch.Tensor:
    """(…, b) labels → (…, c) rows of each."""
    zeros = label.new_zeros((*label.shape[:-1], classes))
    return zeros.scatter_add(-1, label, torch.ones_like(label))


def collapsed(mass: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Heads that put all into one cluster, (h,) bool: 99% of their probability, or every row's
    label. mass: (h, c) sums of probability; used: (h, c) rows whose likeliest cluster it is."""
    share = mass.max(axis=1) / mass.sum(axis=1)
    return (share > _ALL_MASS) | ((used > 0).sum(axis=1) < 2)


def labels_of(
    probability: torch.Tensor, by: Literal["mean", "best_head"], best: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Label (b,) int64, confidence and agreement (b,) float32, of matched heads' probabilities
    (h, b, c).

    label: the likeliest cluster by the mean of heads, or by head `best`; confidence: that
    probability; agreement: the share of heads whose own likeliest cluster is the label.
    """
    confidence, label = (probability.mean(0) if by == "mean" else probability[best]).max(-1)
    agreement = (probability.argmax(-1) == label).float().mean(0)
    return label, confidence, agreement
