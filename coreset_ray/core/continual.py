"""Classes that arrive in tasks, one after another, and a memory that replays some images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coreset_ray.core.rule import shares


def split_classes(classes: int, tasks: int) -> list[np.ndarray]:
    """Classes 0 … classes - 1 in their order, in so many tasks of as equal a size as may be.

    Raises `ValueError` for fewer classes than tasks.
    """
    if not 1 <= tasks <= classes:
        raise ValueError(
            f"continual.tasks={tasks}: the pool's labels name {classes} classes, and each task "
            "needs one of its own"
        )
    return np.array_split(np.arange(classes), tasks)


def quotas(memory: int, sizes: Sequence[int]) -> np.ndarray:
    """Images that the memory keeps of each task seen so far: as evenly as what each has allows.

    memory: images it holds. sizes: (s,) images of each task. Returns (s,) int64 with a sum of
    memory, or of all images where those are fewer.
    """
    capacity = np.asarray(sizes, np.int64)
    return shares(min(memory, int(capacity.sum())), capacity)


def memories(ranked: Sequence[np.ndarray], memory: int, sizes: Sequence[int]) -> list[np.ndarray]:
    """What the memory holds after each task: the best of every task seen, which give way to those
    of later tasks from the worst upwards. What has left does not come back.

    ranked: images chosen of each task, best first, as many at least as its quota when it is the
    last one seen. sizes: images of each task.
    """
    held: list[np.ndarray] = []
    found = []
    for task, rows in enumerate(ranked):
        share = quotas(memory, sizes[: task + 1])
        assert len(rows) >= share[-1], (len(rows), share)
        held = [own[:k] for own, k in zip([*held, rows], share, strict=True)]
        found.append(np.concatenate(held))
    return found


@dataclass(frozen=True)
class Outcome:
    """Shares from 0 to 1. average: the mean over tasks of `seen`; last: accuracy on all classes in
    the end; forgetting: how far accuracy on a task has fallen from its best by then, the mean over
    all tasks but the last (Chaudhry et al., 2018); 0 for one task. seen: accuracy on all classes
    seen so far, after each task."""

    average: float
    last: float
    forgetting: float
    seen: tuple[float, ...]


def outcome(hits: np.ndarray, counts: np.ndarray) -> Outcome:
    """hits: (T, T) test images of task j classified right after task i (0 for j > i), among the
    classes seen by then; counts: (T,) test images of each task, all above 0."""
    tasks = len(counts)
    seen = [float(hits[i, : i + 1].sum() / counts[: i + 1].sum()) for i in range(tasks)]
    accuracy = hits / counts
    fallen = [accuracy[j:-1, j].max() - accuracy[-1, j] for j in range(tasks - 1)]
    forgetting = float(np.mean(fallen)) if fallen else 0.0
    return Outcome(float(np.mean(seen)), seen[-1], forgetting, tuple(seen))
