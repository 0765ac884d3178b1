"""The k-NN probe against a vote counted by hand, whatever the order of the rows."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from matrices import duplicates, gaussian, grid
from pools import table_of

from coreset_ray.core.cosine import unit_rows
from coreset_ray.distributed.probe import ProbeJob, probe_all
from coreset_ray.io.tables import read_table
from coreset_ray.models.knn_probe import knn_accuracy


def voted(train: np.ndarray, labels: np.ndarray, image: np.ndarray, k: int) -> int:
    """By the definition, of rows of length 1; cosines to twelve digits."""
    near = [round(sum(a * b for a, b in zip(row, image, strict=True)), 12) for row in train]
    first = sorted(range(len(train)), key=lambda i: (-near[i], i))[:k]
    count, total = defaultdict(int), defaultdict(float)
    for i in first:
        count[labels[i]] += 1
        total[labels[i]] += near[i]
    return min(count, key=lambda c: (-count[c], -round(total[c], 9), c))


def exact_units(z: np.ndarray) -> np.ndarray:
    unit = unit_rows(z.astype(np.float32)).astype(float)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    return unit / np.where(length > 0, length, 1)


@pytest.mark.parametrize("make", [gaussian, duplicates, grid])
@pytest.mark.parametrize("k", [1, 4, 500])
def test_the_vote_is_the_one_counted_by_hand(make, k) -> None:
    rng = np.random.default_rng(4)
    z, labels = make(160, rng), rng.integers(0, 4, 90)
    z[[7, 120]] = 0
    unit = exact_units(z)
    expected = [voted(unit[:90].tolist(), labels, image, k) for image in unit[90:].tolist()]
    for truth in (np.array(expected), (np.array(expected) + 1) % 4):
        assert knn_accuracy(z[:90], labels, z[90:], truth, k=k) == (truth == expected).mean()


def test_ties_go_to_the_nearer_then_to_the_smallest_class() -> None:
    angle = np.radians([10, -20, -30, 5, 40, 20, -20])
    train, test = np.stack([np.cos(angle), np.sin(angle)], axis=1), np.array([[1.0, 0.0]])

    def says(rows, labels, k) -> int:
        given = train[rows], np.array(labels), test
        (winner,) = (c for c in range(9) if knn_accuracy(*given, np.array([c]), k=k))
        return winner

    assert says([0, 1, 2, 3], [5, 2, 2, 5], 4) == 5  # two each, nearer in sum
    assert says([1, 5], [8, 3], 2) == 3  # equally near on either side: the smallest class
    assert says([0, 1, 2], [1, 7, 7], 5) == 7  # fewer than k: all vote
    assert says([1, 6], [8, 3], 1) == 8  # the same place twice: the first row


def test_classes_apart_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    center, label = rng.normal(size=(5, 30)), rng.integers(0, 5, 300)
    z = center[label] + rng.normal(size=(300, 30)) / 5
    assert knn_accuracy(z[:100], label[:100], z[100:], label[100:]) == 1
    assert knn_accuracy(z[:100], rng.permutation(label[:100]), z[100:], label[100:]) < 0.5


def test_what_cannot_vote_is_refused() -> None:
    z, label = np.ones((3, 4)), np.zeros(3, int)
    with pytest.raises(ValueError, match="k=0 neighbours of 3 images"):
        knn_accuracy(z, label, z, label, k=0)
    with pytest.raises(ValueError, match="k=5 neighbours of 0 images"):
        knn_accuracy(z[:0], label[:0], z, label)
    with pytest.raises(ValueError, match=r"test embeddings have 3 dimensions.* have 4"):
        knn_accuracy(z, label, z[:, :3], label)


@pytest.fixture(scope="module")
def tables(tmp_path_factory, ray_local):
    """A pool of copies whose labels differ, and test images, as `probe_all` takes them."""
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(40, 6)), 5, axis=0)
    folder, label = tmp_path_factory.mktemp("knn"), rng.integers(0, 3, 200)
    pool, parts = table_of(folder / "pool", z, 4)
    test, test_parts = table_of(folder / "test", z[::2] + rng.normal(size=(100, 6)) / 9, 2)
    uids = [
        pa.concat_tables([read_table(table.part(p), ["uid"]) for p in names])["uid"]
        for table, names in ((pool, parts), (test, test_parts))
    ]
    columns = {"uid": uids[0], "label": pa.array(label), "weight": pa.array(rng.random(200))}
    truth = pa.table({"uid": uids[1], "label": pa.array(label[::2])})
    sides = ((pool, list(parts)), (test, list(test_parts)), truth)
    return SimpleNamespace(z=z, rows=pa.table(columns), sides=sides)


def test_both_probes_run_in_one_round_whatever_the_order(tables) -> None:
    order = np.random.default_rng(1).permutation(200)[:90]
    settings = {"l2": 0.1, "max_iterations": 500}
    jobs = []
    for rows in (order, np.sort(order)):
        train = tables.rows.take(pa.array(rows))
        jobs += [ProbeJob(train, False, 3), ProbeJob(train, False), ProbeJob(train, True, 3)]
    told = probe_all(jobs, *tables.sides, **settings)
    assert told[0] == told[2] == told[3] == told[5] and told[0]["converged"]
    alone = probe_all([jobs[1]], *tables.sides, **settings)
    assert told[1] == alone[0] and told[1] != told[0]
