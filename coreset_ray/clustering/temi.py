"""TEMI: heads that agree on pairs of neighbours, weighed by an ensemble of teachers."""

import torch


def temi_loss(
    student: torch.Tensor, teacher: torch.Tensor, marginal: torch.Tensor, *, beta: float = 0.6
) -> torch.Tensor:
    """The loss of each head, (h,): the mean over b pairs (x, x') of -½ w (pmi(x, x') + pmi(x', x)).

    pmi(x, x') = log Σ_c (q_s(c|x) q_t(c|x'))^β / q_t(c), and w = the mean over heads of
    Σ_c q_t(c|x) q_t(c|x'). All in logarithms, so that no small probability is rounded away.

    student, teacher: (h, 2, b, c) logarithms of q_s and q_t, of x and of x'; marginal: (h, c)
    q_t(c). No gradient goes into teacher or marginal.
    Source: Adaloglou et al. 2023; ELFS Eq. 1, whose square inside the logarithm is a slip and
    whose weight is printed for each head; one weight for all heads is what TEMI's authors run.
    """
    teacher, marginal = teacher.detach(), marginal.detach()
    level = _log(marginal)[:, None, None]
    pmi = (beta * (student + teacher.flip(1)) - level).logsumexp(-1)  # (h, 2, b)
    weight = teacher.sum(1).logsumexp(-1).exp().mean(0)  # (b,)
    return -(weight * pmi.mean(1)).mean(-1)


def moved_marginal(
    marginal: torch.Tensor, batch: torch.Tensor, momentum: float = 0.9
) -> torch.Tensor:
    """q_t(c) of each head after a batch whose mean teacher probabilities are `batch`; (h, c)."""
    return momentum * marginal + (1 - momentum) * batch


def _log(probability: torch.Tensor) -> torch.Tensor:
    return probability.clamp_min(torch.finfo(probability.dtype).tiny).log()
