"""DeepFool: how far a classifier's input has to move until another class is predicted."""

import torch
from torch import nn

_TIE = 1e-6  # of logits: what two that are equal are taken to differ by, as no step is none


@torch.no_grad()
def deepfool(
    layers: nn.Sequential, given: torch.Tensor, *, steps: int = 50, overshoot: float = 0.02
) -> tuple[torch.Tensor, torch.Tensor]:
    """The perturbation found for each row, (b, m) float64, and whether it changes the prediction,
    (b,) bool; where it does not, no step was left or no direction led to another class.

    layers: linear, ReLU, linear, of h hidden units; given: (b, m), their input.

    Equation: with y = argmax f(x₀), w_k = ∇f_k - ∇f_y and g_k = f_k - f_y at x_i, the nearest
    class by the linearised network is l = argmin_{k≠y} |g_k| / ‖w_k‖₂, and
    r ← r + |g_l| / ‖w_l‖₂² w_l, x_{i+1} = x₀ + (1 + overshoot) r, until argmax f(x_i) ≠ y.
    Source: Moosavi-Dezfooli et al., 2016, algorithm 2. Cost: O(b·c·h²) a step, whatever m.
    Differs: the overshoot is part of every step, as in the authors' code, not of the last alone.

    Where W is the first layer's weight, every gradient is Wᵀ times the second layer's of the units
    that are on, so r = Wᵀu, and steps need only u (b, h) and WWᵀ.
    """
    first, _, last = layers
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear), "linear, ReLU, linear"
    into, out, bias = first.weight.double(), last.weight.double(), last.bias.double()
    gram = into @ into.T
    before = given.double() @ into.T + first.bias.double()
    label = (before.relu() @ out.T + bias).argmax(1)
    moved = torch.zeros_like(before)
    changed = torch.zeros(len(given), dtype=torch.bool)
    left = torch.arange(len(given))
    for _ in range(steps):
        hidden = before[left] + (1 + overshoot) * (moved[left] @ gram)
        step, found = _step(hidden, label[left], gram, out, bias)
        left = left[found]
        moved[left] += step[found]
        hidden = before[left] + (1 + overshoot) * (moved[left] @ gram)
        same = (hidden.relu() @ out.T + bias).argmax(1) == label[left]
        changed[left[~same]] = True
        left = left[same]
        if len(left) == 0:
            break
    return (1 + overshoot) * (moved @ into), changed


def _step(
    hidden: torch.Tensor,
    label: torch.Tensor,
    gram: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one step adds to u, (b, h), and whether any class has a direction that leads to it.

    hidden: (b, h) input of the ReLU; gram: (h, h); out: (c, h); bias: (c,).
    """
    rows = torch.arange(len(label))
    logits = hidden.relu() @ out.T + bias
    gap = (logits - logits[rows, label, None]).abs().clamp(min=_TIE)
    apart = (out[None] - out[label][:, None]) * (hidden > 0)[:, None]  # (b, c, h)
    square = ((apart @ gram) * apart).sum(2)  # 0 for the class itself
    distance = torch.where(square > 0, gap / square.clamp(min=0).sqrt(), torch.inf)
    shortest, nearest = distance.min(1)
    length = gap[rows, nearest] / square[rows, nearest]
    return length[:, None] * apart[rows, nearest], shortest.isfinite()
