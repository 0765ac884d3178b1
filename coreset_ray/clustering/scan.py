"""SCAN: neighbours fall into one cluster, and clusters are used evenly."""

import torch


def scan_loss(
    student: torch.Tensor, marginal: torch.Tensor, *, entropy_weight: float = 5.0
) -> torch.Tensor:
    """The loss of each head, (h,): the mean over b pairs (x, x') of -log ⟨p(x), p(x')⟩, minus
    entropy_weight times the entropy of the mean p(x) over the batch.

    student: (h, 2, b, c) logarithms of p, of x and of x'; marginal: (h, c) mean p(x) over the
    batch. The marginal may hold rows of other workers: it is a constant here, and Σ_c p̄_c log q_c
    at q = p̄ has the value and the gradient of minus the entropy, as Σ_c dp̄_c = 0; so the mean of
    workers' losses is the loss of the whole batch.
    Source: Van Gansbeke et al. 2020, Eq. 2 (λ = 5).
    """
    log = marginal.detach().clamp_min(torch.finfo(marginal.dtype).tiny).log()
    alike = student.sum(1).logsumexp(-1).mean(-1)
    mean = student[:, 0].exp().mean(1)
    return -alike + entropy_weight * (mean * log).sum(-1)
