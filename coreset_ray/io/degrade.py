"""How a clean pool is made to look like the web: the settings, and what they may be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from coreset_ray.core.random import check_seed


@dataclass(frozen=True)
class Degrade:
    """Near-duplicates by a power law, long-tailed classes, images that are off topic or worthless.

    factor: images of the pool over distinct images of the source; size: images of the pool
    (default: `factor` times what the source has, else as many distinct images are drawn from it).
    exponent: the r-th largest group of duplicates has about r^-exponent of all copies, each group
    at least one image. exact: share of the copies that are the same bytes; composed: share of the
    other copies that are changed twice. long_tail: images of the largest class over those of the
    smallest, exponential between them (Cui et al., Class-Balanced Loss, CVPR 2019); 1 is off.
    off_topic, blank, noise: shares of the pool. seed: of everything drawn.

    ValueError: a value out of its range, or a factor with no place for each distinct image.
    """

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"extra": "forbid"}  # no unknown settings

    factor: float = 10.0
    size: int | None = None
    exponent: float = 1.0
    exact: float = 0.1
    composed: float = 0.3
    long_tail: float = 1.0
    off_topic: float = 0.0
    blank: float = 0.01
    noise: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("factor", 1, 1e6),
            ("exponent", 0, 4),
            ("exact", 0, 1),
            ("composed", 0, 1),
            ("long_tail", 1, 1e6),
            *((name, 0, 1) for name in ("off_topic", "blank", "noise")),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also where it is NaN
                raise ValueError(f"{name}={value:g}: choose from {low} to {high:g}")
        check_seed(self.seed)
        shares = f"off_topic={self.off_topic:g}, blank={self.blank:g} and noise={self.noise:g}"
        room = 1 - self.off_topic - self.blank - self.noise
        if room <= 0:
            raise ValueError(
                f"{shares} leave nothing of the pool: lower them to less than 1 in all"
            )
        if self.factor * room < 1:
            raise ValueError(
                f"factor={self.factor:g} has no place for each distinct image beside {shares}: "
                f"raise factor to {math.ceil(1e4 / room) / 1e4}, or lower these shares"
            )
        if self.size is not None and self.size < self.factor:
            raise ValueError(
                f"size={self.size} has not one distinct image at factor={self.factor:g}: raise "
                f"size to {math.ceil(self.factor)}, or lower factor"
            )
