"""What a training leaves behind of each image in each epoch, from the logits it trains on."""

import torch

METRICS = (
    "margin",
    "correct",
    "error_norm",
    "loss",
    "target_probability",
    "entropy",
    "confidence",
    "runner_up",
    "change",
)


@torch.no_grad()
def measure(
    logits: torch.Tensor, label: torch.Tensor, before: torch.Tensor | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The metrics of a batch, each (b,), `correct` bool and the others float32, and its
    log-probabilities, (b, c) float32.

    logits: (b, c), c ≥ 2; label: (b,) int64, y below; before: the same rows' log-probabilities an
    epoch ago, None in the first. With p = softmax(logits), p₁ and p₂ its largest:
    margin p_y - max_{i≠y} p_i; correct: y is the first class of the largest p; error_norm
    ‖p - onehot(y)‖₂; loss -log p_y; target_probability p_y; entropy -Σ p log p; confidence p₁;
    runner_up p₂; change Σ |p (log p - before)| (TDDS), 0 in the first epoch.
    """
    log_p = torch.log_softmax(logits.float(), 1)
    p, target = log_p.exp(), label[:, None]
    log_target = log_p.gather(1, target)[:, 0]
    confidence, runner_up = p.topk(2, 1).values.unbind(1)
    correct = p.argmax(1) == label
    chance = log_target.exp()
    # p_y - 1 from the logarithm: near p_y = 1 the subtraction would leave few digits.
    error = p.scatter(1, target, torch.expm1(log_target)[:, None])
    change = torch.zeros_like(chance) if before is None else (p * (log_p - before)).abs().sum(1)
    metrics = {
        "margin": chance - torch.where(correct, runner_up, confidence),
        "correct": correct,
        "error_norm": torch.linalg.vector_norm(error, dim=1),
        "loss": -log_target,
        "target_probability": chance,
        "entropy": -(p * log_p).sum(1),
        "confidence": confidence,
        "runner_up": runner_up,
        "change": change,
    }
    return metrics, log_p
