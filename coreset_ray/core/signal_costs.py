"""What signals cost, as arithmetic: floating-point operations of matrix products, bytes of memory
over all machines, bytes written.

n rows, m dimensions, k neighbours, c classes or clusters, h units of a hidden layer.
"""

from dataclasses import dataclass
from itertools import pairwise

BLOCK = 1 << 20  # rows of an index of neighbours
HELD = 2 << 30  # bytes of rows that a process of k-means keeps
TRAINING = 20.0  # seconds for a training by Ray Train to come up, measured on two cores
_PASSES = 12  # over the rows until k-means begins to iterate
_UID = 17  # bytes of a row's identity on disk
_NUMBER = 4  # of a neighbour's number on disk
_FOOLED = 2  # steps of DeepFool an image, where a classifier has learned: 1.2 to 1.9 on digits
_FLOAT = 3.8  # of a float32 on disk: mantissas hardly compress


@dataclass(frozen=True)
class Work:
    """flops: in all; memory: bytes of all processes together; writes: bytes; trainings: one after
    another, of one worker each; processes: that share the work, at most."""

    flops: float
    memory: int
    writes: int
    trainings: int = 0
    processes: int = 1 << 30

    def seconds(self, rate: float, cpus: int, start: float) -> float:
        """rate: operations a second of one CPU while all are at work; start: of an actor."""
        share = max(1, min(cpus, self.processes))
        return self.flops / (rate * share) + self.trainings * TRAINING + start


def neighbors(n: int, m: int, k: int, kind: str, lists: int, probes: int) -> Work:
    """Every row against every row, or against the rows of some lists of every block. An inverted
    file has its own copy of the rows, or of their codes; a block is read before it is put together.
    """
    block = min(n, BLOCK)
    each = n if kind == "flat" else -(-n // BLOCK) * (lists + block * probes / lists)
    copy = {"flat": 0, "ivf": 4 * m, "ivfpq": 32}[kind] * n
    memory = 4 * n * m + 24 * n + max(copy, 4 * m * block)
    return Work(2.0 * n * m * each, memory, int(n * (_UID + k * (_NUMBER + _FLOAT))))


def clusters(n: int, m: int, c: int, single: int, iterations: int) -> Work:
    """k-means in one level, or in two of about √c."""
    width = c if c <= single else 2 * round(c**0.5)
    flops = 2.0 * n * m * width * (iterations + _PASSES)
    return Work(flops, min(4 * n * m, HELD) + 16 * n, int(n * (_UID + 2 * _FLOAT)))


def heads(n: int, m: int, c: int, hidden: tuple[int, ...], count: int, epochs: int) -> Work:
    """Heads on pairs of neighbours: student there and back, teacher there, of both rows."""
    widths = [m, *hidden, c]
    first, *rest = (a * b for a, b in pairwise(widths))
    flops = 2.0 * epochs * n * 2 * count * (3 * first + 4 * sum(rest))
    return Work(flops, 4 * n * m, int(n * (_UID + 3 * _FLOAT)), 1)


def classifier(n: int, m: int, c: int, hidden: int, epochs: int, columns: int) -> Work:
    """An MLP on embeddings, there and back; columns: numbers written of each row."""
    flops = 2.0 * epochs * n * (2 * m * hidden + 3 * hidden * c)
    return Work(flops, 4 * n * m + 8 * n * c, int(n * (_UID + columns * _FLOAT)), 1)


def proxy(n: int, m: int, c: int, hidden: int, epochs: int, runs: int) -> Work:
    """Small classifiers side by side; of each image their probabilities, features and gradients,
    and DeepFool on the first, in float64."""
    training = classifier(n, m, c, hidden, epochs, 0)
    told = runs * (m * hidden + hidden * c) + 2 * (m * hidden + _FOOLED * c * hidden**2)
    flops = runs * training.flops + 2.0 * n * told
    return Work(flops, 4 * n * m, int(n * (_UID + _NUMBER + (c + hidden + runs + 1) * _FLOAT)), 1)
