"""How ways of selecting stand beside random at each budget, and which of them to take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coreset_ray.core.compare import Difference, holm, paired_difference, spread

LEVEL = 0.05
BASELINE = "random"


@dataclass(frozen=True)
class Runs:
    """What one way of selecting came to at one budget. values: by seed; same: all seeds chose the
    same coreset; trained: the value has a spread of its own beside that."""

    label: str
    images: int
    values: Mapping[int, float]
    same: bool = False
    trained: bool = False

    @property
    def single(self) -> bool:
        """Whether there is one value, which no seed moves."""
        return self.same and not self.trained

    @property
    def mean(self) -> float:
        return sum(self.values.values()) / len(self.values)

    @property
    def deviation(self) -> float | None:
        """Over seeds; None where there is one value or one seed."""
        return None if self.single else spread(list(self.values.values()))

    def beside(self, other: "Runs") -> Difference:
        """The difference at the seeds of both."""
        seeds = [seed for seed in self.values if seed in other.values]
        return paired_difference(
            [self.values[seed] for seed in seeds], [other.values[seed] for seed in seeds]
        )


@dataclass(frozen=True)
class Standing:
    """Runs beside random at the same budget. difference: None for random itself; adjusted: its p
    by Holm over all methods and budgets."""

    runs: Runs
    difference: Difference | None = None
    adjusted: float | None = None

    @property
    def told_apart(self) -> bool:
        """Whether it differs from random, all comparisons considered."""
        return self.adjusted is not None and self.adjusted <= LEVEL

    @property
    def better(self) -> bool:
        return self.told_apart and self.difference is not None and self.difference.mean > 0


@dataclass(frozen=True)
class Advice:
    """What to take at one budget. best: None for random; alike: other methods better than random
    that are not told apart from the best; nearest: the highest mean but random's; tried: methods
    beside random."""

    images: int
    best: Standing | None
    alike: tuple[str, ...]
    nearest: Standing | None
    tried: int


def standings(runs: list[Runs]) -> list[Standing]:
    """Each beside random, by budget and then from the highest mean down.

    runs: of one measure that is the better the higher; random at each budget among them.
    """
    random = {r.images: r for r in runs if r.label == BASELINE}
    found = [Standing(r, None if r.label == BASELINE else r.beside(random[r.images])) for r in runs]
    tested = [i for i, s in enumerate(found) if s.difference and s.difference.p is not None]
    p = [s.difference.p for s in found if s.difference and s.difference.p is not None]
    for i, adjusted in zip(tested, holm(p), strict=True):
        found[i] = replace(found[i], adjusted=adjusted)
    return sorted(found, key=lambda s: (s.runs.images, -s.runs.mean, s.runs.label))


def advise(found: list[Standing]) -> list[Advice]:
    """At each budget the method with the highest mean of those better than random, else random."""
    advice = []
    for images in dict.fromkeys(s.runs.images for s in found):
        others = [s for s in found if s.runs.images == images and s.runs.label != BASELINE]
        better = [s for s in others if s.better]
        best = better[0] if better else None
        alike = [s.runs.label for s in better[1:] if best and _alike(best.runs, s.runs)]
        nearest = others[0] if others else None
        advice.append(Advice(images, best, tuple(alike), nearest, len(others)))
    return advice


def _alike(one: Runs, other: Runs) -> bool:
    if not one.values.keys() & other.values.keys():
        return True
    p = one.beside(other).p
    return p is None or p > LEVEL
