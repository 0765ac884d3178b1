"""Classifiers that learn task after task, side by side: a Ray task for each sequence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.continual import memories, outcome
from coreset_ray.distributed.evaluations import as_they_finish
from coreset_ray.distributed.probe import gather
from coreset_ray.distributed.session import cluster
from coreset_ray.distributed.train import open_any
from coreset_ray.distributed.train_worker import MAX_PIXELS
from coreset_ray.io.filesystem import Location, locate
from coreset_ray.io.images import decode
from coreset_ray.io.tables import QUARANTINE, Commit, PartedTable, content_hash, read_table
from coreset_ray.models.continual import EmbeddingLearner, ImageLearner, learn_tasks
from coreset_ray.models.images import IndexedImages
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.recipe import Recipe


@dataclass(frozen=True)
class Course:
    """One sequence of tasks to learn. ranked: uids chosen of each task, best first; memory: images
    it holds; coreset: learn of a new task what the memory takes of it alone, else all of it."""

    ranked: tuple[tuple[str, ...], ...]
    memory: int
    seed: int
    coreset: bool


def split_table(
    table: PartedTable, commits: Sequence[Commit], task: dict[str, int], out: Sequence[Location]
) -> None:
    """The rows of each task as a table of its own, part by part; what is there stays.

    task: of each uid; an image that is in none is in no table. out: a folder for each task.
    """
    told, folders = ray.put(task), [folder.uri for folder in out]
    parts = [PartedTable(folder) for folder in out]
    left = [c for c in commits if not all(part.holds(c.part) for part in parts)]
    ray.get([_split.remote(table.folder.uri, c, told, folders) for c in left])


@ray.remote(num_cpus=1)
def _split(table: str, commit: Commit, task: dict[str, int], out: list[str]) -> None:
    source = PartedTable(locate(table))
    rows = read_table(source.part(commit.part)) if commit.rows else None
    own = np.array([task.get(u, -1) for u in rows["uid"].to_pylist()] if rows is not None else [])
    for number, folder in enumerate(out):
        some = rows.filter(pa.array(own == number)) if rows is not None else None
        some = some if some is not None and len(some) else None
        content = content_hash(some) if some is not None else ""
        count = 0 if some is None else len(some)
        told = replace(commit, rows=count, quarantined=0, repeated=0, fault="", content=content)
        PartedTable(locate(folder)).commit(told, some, QUARANTINE.empty_table())


def learn_each(
    courses: Sequence[Course],
    recipe: MlpRecipe | Recipe,
    tasks: Sequence[np.ndarray],
    images: pa.Table,
    truth: pa.Table,
    pool: tuple[PartedTable, list[str]],
    test: tuple[PartedTable, list[str]],
    *,
    use_gpu: bool,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Place and outcome (`core.continual.Outcome`) of each course, as they finish.

    recipe: of an MLP on embeddings, or of a network on the images. tasks: classes of each. images,
    truth: columns uid, path, offset, size, label, of the whole pool and of the test images; pool,
    test: an embedding table and the names of its parts.
    """
    if isinstance(recipe, MlpRecipe):
        sides = ((pool, images), (test, truth))
        data = [gather.remote(t.folder.uri, names, i["uid"]) for (t, names), i in sides]
    else:
        data = [ray.put(i.select(["path", "offset", "size"])) for i in (images, truth)]
    labels = [ray.put(i["label"].to_numpy().astype(np.int64)) for i in (images, truth)]
    shared = [ray.put(images["uid"].to_pylist()), *labels, *data]
    how = _learn.options(num_gpus=1 if use_gpu else 0)
    jobs = [partial(how.remote, c, recipe, list(tasks), use_gpu, *shared) for c in courses]
    on = cluster()
    yield from as_they_finish(jobs, max(1, int(on.gpus if use_gpu else on.cpus)))


@ray.remote(num_cpus=1)
def _learn(
    course: Course,
    recipe: MlpRecipe | Recipe,
    classes: list[np.ndarray],
    use_gpu: bool,
    uid: list[str],
    label: np.ndarray,
    truth: np.ndarray,
    pool: Any,
    test: Any,
) -> dict[str, Any]:
    number = {name: row for row, name in enumerate(uid)}
    ranked = [np.array([number[u] for u in own], np.int64) for own in course.ranked]
    new = [np.flatnonzero(np.isin(label, own)) for own in classes]
    sizes = [len(rows) for rows in new]
    replayed = memories(ranked, course.memory, sizes)
    told = recipe, label, sum(map(len, classes)), course.seed, "cuda" if use_gpu else "cpu"
    if isinstance(recipe, MlpRecipe):
        learner = EmbeddingLearner(*told, pool=pool, test=test)
    else:
        read = partial(_images, open_file=open_any)
        learner = ImageLearner(
            *told,
            pool=read(pool, label, transform=recipe.train_transform()),
            test=read(test, truth, transform=recipe.test_transform()),
        )
    if course.coreset:
        new = [np.intersect1d(rows, held) for rows, held in zip(new, replayed, strict=True)]
    hits = learn_tasks(learner, new, replayed, classes, truth)
    counts = np.array([np.isin(truth, own).sum() for own in classes])
    return vars(outcome(hits, counts))


def _images(table: pa.Table, label: np.ndarray, **how: Any) -> IndexedImages:
    columns = table["path"].to_pylist(), table["offset"].to_numpy(), table["size"].to_numpy()
    return IndexedImages(*columns, label, decode=partial(decode, max_pixels=MAX_PIXELS), **how)
