"""Trained and matched heads that label any embeddings, those of the pool or new ones."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from coreset_ray.clustering.agreement import counts, labels_of
from coreset_ray.clustering.deep import HeadSettings
from coreset_ray.clustering.heads import Heads

_BLOCK = 1 << 23  # values of a layer of all heads, of the rows that are computed at once


@torch.no_grad()
def head_probability(heads: Heads, rows: torch.Tensor, temperature: float) -> torch.Tensor:
    """(b, m) embeddings → (h, b, c) probabilities of clusters."""
    return (heads(rows).float() / temperature).softmax(-1)


def block_rows(heads: Heads) -> int:
    """Rows that are computed at once, so that a layer of all heads takes about 32 MB."""
    widest = max(heads.last.shape[2], *(weight.shape[2] for weight in heads.weight), 1)
    return max(1, _BLOCK // (len(heads.last) * widest))


@dataclass(frozen=True)
class Labeler:
    """heads: matched, so that a cluster has one number in all; best: the one of least loss."""

    heads: Heads
    settings: HeadSettings
    best: int

    def label(
        self, embedding: np.ndarray, device: str = "cpu"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Label (n,) int32, confidence and agreement (n,) float32 of embeddings (n, m); see
        agreement.labels_of. Computed in blocks of one size, so that a row's digits depend on its
        place in the call alone."""
        heads, size, found = self.heads.to(device), block_rows(self.heads), []
        for start in range(0, len(embedding), size):
            rows = torch.tensor(embedding[start : start + size], device=device)
            probability = head_probability(heads, rows, self.settings.temperature)
            found.append(labels_of(probability, self.settings.label, self.best))
        label, confidence, agreement = (
            torch.cat(column).cpu().numpy() for column in zip(*found, strict=True)
        )
        return label.astype(np.int32), confidence, agreement

    def counts(self, probability: torch.Tensor) -> torch.Tensor:
        """(h, b, c) → (c,) rows of each label."""
        label, _, _ = labels_of(probability, self.settings.label, self.best)
        return counts(label, probability.shape[2])

    def state(self) -> dict[str, Any]:
        """What `labeler_of` takes back: tensors and plain values, no code."""
        settings = {**asdict(self.settings), "hidden": list(self.settings.hidden)}
        heads = {name: value.cpu() for name, value in self.heads.state_dict().items()}
        return {"heads": heads, "settings": settings, "best": self.best}


def labeler_of(state: dict[str, Any]) -> Labeler:
    given, weights = state["settings"], state["heads"]
    settings = HeadSettings(**{**given, "hidden": tuple(given["hidden"])})
    heads = Heads(
        *(weights["mean"], weights["deviation"], settings.classes, len(weights["last"])),
        hidden=settings.hidden,
    )
    heads.load_state_dict(weights)
    return Labeler(heads, settings, state["best"])
