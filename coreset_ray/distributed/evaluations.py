"""Many coresets evaluated side by side, over images and embeddings that are gathered once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from coreset_ray.core.corrupt import Corruption
from coreset_ray.distributed.fit import Running
from coreset_ray.distributed.probe import gather
from coreset_ray.distributed.session import cluster
from coreset_ray.distributed.train import train_and_test
from coreset_ray.io.filesystem import locate
from coreset_ray.io.tables import PartedTable, read_table, uid_words
from coreset_ray.models.knn_probe import knn_accuracy
from coreset_ray.models.probe import linear_probe
from coreset_ray.models.recipe import Recipe

# (k, m) embeddings, (k,) labels and (k,) weights or None to learn, (n, m) and (n,) to be tested on
# → an outcome
Evaluator = Callable[
    [np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray], dict[str, Any]
]


def probe(*told: Any, **settings: Any) -> dict[str, Any]:
    """The linear probe as an evaluator; settings: its l2 and max_iterations."""
    return asdict(linear_probe(*told, **settings))


def knn(
    train: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
    test: np.ndarray,
    truth: np.ndarray,
    *,
    k: int,
) -> dict[str, Any]:
    """The k-NN probe as an evaluator, which knows no weights; train: in the order of uids, which
    settles ties."""
    return {"accuracy": knn_accuracy(train, labels, test, truth, k=k), "converged": True}


@dataclass(frozen=True)
class Coreset:
    """What is evaluated. manifest: URI of a table with columns uid and weight; evaluate: of
    embeddings, given in the order of uids where by_uid, else of the manifest; weighted: with the
    weights; corruption: of the labels to learn."""

    manifest: str
    evaluate: Evaluator
    by_uid: bool = False
    weighted: bool = False
    corruption: Corruption | None = None


def evaluate_each(
    coresets: Sequence[Coreset],
    pool: tuple[PartedTable, list[str]],
    images: pa.Table,
    test: tuple[PartedTable, list[str]],
    truth: pa.Table,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Place and outcome of each coreset, as they finish; so many at a time as there are CPUs.

    pool, test: a table and the names of its parts; images, truth: columns uid and label, of all
    coresets together and of the test images.
    """
    images = images.select(["uid", "label"]).sort_by("uid")
    shared = [
        ray.put(_bytes(images["uid"])),
        gather.remote(pool[0].folder.uri, pool[1], images["uid"]),
        ray.put(images["label"].to_numpy()),
        gather.remote(test[0].folder.uri, test[1], truth["uid"]),
        ray.put(truth["label"].to_numpy()),
    ]
    tasks = [partial(_evaluate.remote, coreset, *shared) for coreset in coresets]
    yield from as_they_finish(tasks, max(1, int(cluster().cpus)))


@dataclass(frozen=True)
class Training:
    """A coreset to train on, by its manifest. seed: of the training; weighted: as in the recipe;
    corruption: of the labels to learn."""

    manifest: str
    running: Running
    seed: int
    weighted: bool | Literal["each"] = False
    corruption: Corruption | None = None


def train_each(
    trainings: Sequence[Training],
    images: pa.Table,
    truth: pa.Table,
    recipe: Recipe,
    *,
    at_once: int,
    classes: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Place and outcome of each training, as they finish; `at_once` of them at a time.

    images, truth: columns uid, path, offset, size, label, of all coresets together and of the
    test images.
    """
    shared = [ray.put(images), ray.put(truth), recipe, classes]
    tasks = [partial(_train.remote, training, *shared) for training in trainings]
    yield from as_they_finish(tasks, at_once)


def training_rows(
    coreset: pa.Table, images: pa.Table, name: str, corruption: Corruption | None = None
) -> pa.Table:
    """The coreset's images that have a label, in its own order, with label and weight.

    name: of the coreset, for the message where none has; corruption: of the labels.
    """
    rows = coreset.select(["uid", "weight"])
    order = pa.array(np.arange(len(rows)))
    joined = rows.append_column("order", order).join(images, "uid", join_type="inner")
    if not len(joined):
        raise ValueError(
            f"none of the {len(rows)} images of {name} has a label: there is nothing to train on; "
            "check evaluate.labels, or raise the budget"
        )
    joined = joined.sort_by("order").drop_columns(["order"])
    if corruption is None:
        return joined
    label = corruption.apply(uid_words(joined["uid"]), joined["label"].to_numpy())
    return joined.set_column(joined.column_names.index("label"), "label", pa.array(label))


def relative(coreset: pa.Table) -> pa.Table:
    """With weights that count images, some of them above 1, divided by their mean: training scales
    the loss by them, and n / k would be a longer step."""
    weights = coreset["weight"].to_numpy()
    if weights.max(initial=0.0) <= 1:
        return coreset
    place = coreset.column_names.index("weight")
    return coreset.set_column(place, "weight", pa.array(weights / weights.mean()))


def as_they_finish(
    tasks: Sequence[Callable[[], ray.ObjectRef]], at_once: int
) -> Iterator[tuple[int, Any]]:
    """Place and answer of each task, as they finish; so many at a time."""
    waiting, running = list(enumerate(tasks))[::-1], {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                place, start = waiting.pop()
                running[start()] = place
            ready, _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ready[0]), ray.get(ready[0])
    finally:
        for task in running:
            ray.cancel(task)


def _bytes(uid: pa.ChunkedArray) -> np.ndarray:
    """uid strings → fixed-width bytes, whose order is that of the strings."""
    return np.array(uid.to_pylist(), "S32")


@ray.remote(num_cpus=1)
def _evaluate(
    coreset: Coreset,
    uid: np.ndarray,
    pool: np.ndarray,
    label: np.ndarray,
    test: np.ndarray,
    truth: np.ndarray,
) -> dict[str, Any]:
    """uid: (u,) ascending, of the rows of `pool` and `label`: all that have a label. With how many
    of the coreset have none, as `unlabeled`."""
    told = relative(read_table(locate(coreset.manifest), ["uid", "weight"]))
    wanted, weight = _bytes(told["uid"]), told["weight"].to_numpy()
    rows = np.searchsorted(uid, wanted).clip(max=max(len(uid) - 1, 0))
    labeled = uid[rows] == wanted
    rows, weight = rows[labeled], weight[labeled]
    if not len(rows):
        raise ValueError(f"none of the {len(wanted)} images of {coreset.manifest} has a label")
    if coreset.by_uid:
        order = np.argsort(rows)
        rows, weight = rows[order], weight[order]
    learned = label[rows]
    if coreset.corruption is not None:
        words = uid_words(pa.array(uid[rows].astype(str)))
        learned = coreset.corruption.apply(words, learned)
    weights = weight if coreset.weighted else None
    outcome = coreset.evaluate(pool[rows], learned, weights, test, truth)
    return outcome | {"unlabeled": len(wanted) - len(rows)}


@ray.remote(num_cpus=0)  # its training takes what it needs
def _train(
    training: Training,
    images: pa.Table,
    truth: pa.Table,
    recipe: Recipe,
    classes: int,
) -> dict[str, Any]:
    chosen = relative(read_table(locate(training.manifest), ["uid", "weight"]))
    recipe = replace(recipe, weighted=training.weighted)
    rows = training_rows(chosen, images, training.running.name, training.corruption)
    how = {"classes": classes, "seed": training.seed, "running": training.running}
    return train_and_test(rows, truth, recipe, **how)
