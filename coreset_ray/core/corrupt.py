"""Wrong labels on purpose: the same image has the same one in every coreset at a seed."""

from dataclasses import dataclass

import numpy as np

from coreset_ray.core.random import uid_uniform

_WHETHER, _WHICH = 0xC0448, 0xC0449  # the uses of random numbers


@dataclass(frozen=True)
class Corruption:
    """Each label is, with probability `share`, replaced by another class drawn uniformly.

    Whether and by which is a function of (seed, uid) alone, so a coreset has a share of wrong ones
    that varies around `share`; a larger share adds to the wrong labels of a smaller one.
    Source: the survey's Table VI, "reassigning 10% of samples to new class labels".

    share: in [0, 1]. classes: labels are integers from 0 to classes - 1.
    Raises `ValueError` where there is no other class.
    """

    share: float
    classes: int
    seed: int

    def __post_init__(self) -> None:
        if self.share and self.classes < 2:
            raise ValueError(
                f"evaluate.corrupt={self.share} with {self.classes} class: there is no other to "
                "give; set it to 0, or label images of two classes"
            )

    def apply(self, uid: np.ndarray, label: np.ndarray) -> np.ndarray:
        """uid: (n, 2) uint64; label: (n,) integers. Returns: (n,), of the same type."""
        if not self.share:
            return label
        step = (uid_uniform(self.seed, uid, _WHICH) * (self.classes - 1)).astype(np.int64)
        wrong = (label + 1 + step) % self.classes
        chosen = uid_uniform(self.seed, uid, _WHETHER) < self.share
        return np.where(chosen, wrong, label).astype(label.dtype)
