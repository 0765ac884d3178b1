"""A setting of a selection rule found on pseudo-labels: coresets of each value are tried side by
side, each by a classifier trained on its pseudo-labels and tested on rows held out."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from coreset_ray.core.method import Scorer
from coreset_ray.core.pool import joined
from coreset_ray.core.random import uid_uniform
from coreset_ray.core.rule import Rule, choose_rows, hardest
from coreset_ray.distributed.blocks import PoolFiles
from coreset_ray.distributed.progress import Progress
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import array_of, read_table
from coreset_ray.models.mlp import MlpRecipe, fit_and_test

_SAMPLE, _SPLIT = 0x5A, 0x5B  # uses of random numbers, apart from others at the same seed
_PATIENCE = 2  # values below the best, one after another, that end an early search


@dataclass(frozen=True)
class Split:
    """Rows that take part. key: (n,) float64, what they are ranked by; uid: (n, 2); label: (n,);
    group: (n,) or None; held_out: (n,) bool, rows to validate on; embedding: (n, m)."""

    key: np.ndarray
    uid: np.ndarray
    label: np.ndarray
    group: np.ndarray | None
    held_out: np.ndarray
    embedding: np.ndarray


@dataclass(frozen=True)
class Tried:
    """Validation accuracies of one value of the setting, one a seed, at one budget."""

    keep: float
    value: float
    accuracy: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.accuracy) / len(self.accuracy)


@dataclass(frozen=True)
class Settings:
    """held_out: share of each pseudo-label; rows: that take part, about; early: whether to stop
    once the curve falls; seeds: trainings of each value; classes: c."""

    held_out: float
    rows: int
    early: bool
    seeds: int
    classes: int
    seed: int
    proxy: MlpRecipe


def try_values(
    method: Scorer,
    rule_of: Callable[[float], Rule],
    values: Mapping[float, Sequence[float]],
    files: PoolFiles,
    scores: str,
    parts: dict[str, int],
    group: str | None,
    settings: Settings,
) -> list[Tried]:
    """What each value of the setting comes to, in ascending order for each budget.

    Source: ELFS section 4.3.2 and appendix D. values: by the share of the pool that is kept;
    scores: folder of the score parts; group: the column of groups that are balanced. A search that
    stops early leaves out values beyond two in a row that are below the best before them.
    Raises `ValueError` for a pool too small for the split.
    """
    split = _split.remote(method, files, scores, parts, group, settings)
    slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
    tried, waiting = [], {keep: deque(values[keep]) for keep in values}
    total = sum(map(len, values.values()))
    with Progress("search", total, "coresets") as progress:
        for keep, queue in waiting.items():
            running: deque[tuple[float, list[Any]]] = deque()
            found: list[Tried] = []
            while queue or running:
                while queue and len(running) * settings.seeds < slots:
                    value = queue.popleft()
                    rule = rule_of(value)
                    tasks = [
                        _try.remote(rule, split, keep, settings, s) for s in range(settings.seeds)
                    ]
                    running.append((value, tasks))
                value, tasks = running.popleft()
                found.append(Tried(keep, value, tuple(ray.get(tasks))))
                progress.update(len(tried) + len(found), f"{value:g}: {found[-1].mean:.3f}")
                if settings.early and falling([t.mean for t in found]):
                    queue.clear()
                    for _, left in running:
                        for task in left:
                            ray.cancel(task)
                    break
            tried += found
    return tried


def falling(curve: Sequence[float]) -> bool:
    """Whether a near-concave curve is past its top: its last points all lie below the best."""
    after = len(curve) - 1 - int(np.argmax(curve))
    return after >= _PATIENCE


@ray.remote(num_cpus=1)
def _split(
    method: Scorer,
    files: PoolFiles,
    scores: str,
    parts: dict[str, int],
    group: str | None,
    settings: Settings,
) -> Split:
    """One part in memory at a time beside the rows that take part."""
    share = settings.rows / sum(parts.values())
    names = ("embedding", "pseudo_labels.label", *([group] if group else []))
    blocks, keys = [], []
    for part in parts:
        rows = files.read(part, tuple(dict.fromkeys(names)))
        score = array_of(read_table(locate(scores) / f"part-{part}.parquet", ["score"])["score"])
        keep = uid_uniform(settings.seed, rows.uid, _SAMPLE) < share
        keys.append(method.rank_key(score, rows.uid, settings.seed)[keep])
        blocks.append(rows.take(np.flatnonzero(keep)))
    rows, key = joined(blocks), np.concatenate(keys)
    label = rows["pseudo_labels.label"].astype(np.int64)
    held_out = _held_out(label, rows.uid, settings)
    if not held_out.any():
        raise ValueError(
            f"{len(rows)} images in {settings.classes} pseudo-labels leave none to validate on "
            f"with select.search.held_out={settings.held_out}: raise it, or set the value"
        )
    groups = rows[group].astype(np.int64) if group else None
    return Split(key, rows.uid, label, groups, held_out, rows["embedding"])


def _held_out(label: np.ndarray, uid: np.ndarray, settings: Settings) -> np.ndarray:
    """A random share of each label, (n,) bool."""
    lot, out = uid_uniform(settings.seed, uid, _SPLIT), np.zeros(len(label), bool)
    for c in np.unique(label):
        rows = np.flatnonzero(label == c)
        out[rows[np.argsort(lot[rows])[: hardest(settings.held_out, len(rows))]]] = True
    return out


@ray.remote(num_cpus=1)
def _try(rule: Rule, split: Split, keep: float, settings: Settings, seed: int) -> float:
    """Accuracy on the rows held out."""
    pool = np.flatnonzero(~split.held_out)
    k = max(1, round(keep * len(pool)))
    group = None if split.group is None else split.group[pool]
    rows = pool[choose_rows(rule, split.key[pool], split.uid[pool], k, settings.seed, group)]
    held_out = np.flatnonzero(split.held_out)
    return fit_and_test(
        settings.proxy,
        (split.embedding[rows], split.label[rows]),
        (split.embedding[held_out], split.label[held_out]),
        classes=settings.classes,
        seed=seed,
    )
