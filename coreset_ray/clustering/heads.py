"""Many clustering heads as one batched tensor program.

h heads, b rows, m dimensions of an embedding, c clusters. A layer of all heads is one tensor
(h, in, out) and one batched product; no loop goes over heads.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from coreset_ray.core.random import check_seed


class Heads(nn.Module):
    """h heads that each turn an embedding into logits over c clusters.

    Source: Adaloglou et al. 2023 (TEMI), after DINO's projection head. Standardised input →
    linear layers of the widths in `hidden` with GELU between them → rows of length 1 → linear
    whose columns have length 1. So logits are cosines, in [-1, 1]. `hidden=()` is one plain linear
    layer with a bias, SCAN's head, whose logits are not bounded.

    mean, deviation: of each dimension of the pool, (m,); they standardise what comes in.
    seed: the initial weights, normal of variance 1 / in, are a function of it.
    Cost: 2·h·b·(m·512 + 512·256 + 256·c) operations a batch.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self,
        mean: torch.Tensor,
        deviation: torch.Tensor,
        classes: int,
        heads: int,
        *,
        hidden: Sequence[int] = (512, 256),
        seed: int = 0,
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(check_seed(seed))
        self.register_buffer("mean", mean.float())
        self.register_buffer("deviation", deviation.float())
        widths = [len(mean), *hidden]
        self.weight = nn.ParameterList(
            torch.randn(heads, a, b, generator=random) / a**0.5
            for a, b in zip(widths[:-1], hidden, strict=True)
        )
        self.bias = nn.ParameterList(torch.zeros(heads, 1, b) for b in hidden)
        self.last = nn.Parameter(
            torch.randn(heads, widths[-1], classes, generator=random) / widths[-1] ** 0.5
        )
        self.offset = None if hidden else nn.Parameter(torch.zeros(heads, 1, classes))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(b, m) embeddings → (h, b, c) logits."""
        x = (rows.float() - self.mean) / self.deviation
        x = x.expand(len(self.last), *x.shape)
        if self.offset is not None:
            return torch.baddbmm(self.offset, x, self.last)
        for i, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = torch.baddbmm(bias, F.gelu(x) if i else x, weight)
        return torch.bmm(F.normalize(x, dim=2), F.normalize(self.last, dim=1))

    @torch.no_grad()
    def reorder(self, kept: torch.Tensor, order: torch.Tensor | None) -> "Heads":
        """These heads alone, cluster order[i, j] of head kept[i] becoming its cluster j.

        kept: (g,) numbers of heads; order: (g, c) permutations, or none.
        """
        few = Heads(
            self.mean,
            self.deviation,
            self.last.shape[2],
            len(kept),
            hidden=[weight.shape[2] for weight in self.weight],
        )
        state = {
            k: v if k in _SHARED else v[kept.to(v.device)] for k, v in self.state_dict().items()
        }
        for name in ("last", "offset"):
            if order is not None and name in state:
                places = order.to(state[name].device)[:, None].expand_as(state[name])
                state[name] = state[name].gather(2, places)
        few.load_state_dict(state)
        return few.to(self.last.device)


_SHARED = ("mean", "deviation")
