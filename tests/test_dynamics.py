"""Training dynamics: what is recorded of a batch, who owns which row, and small real trainings."""

import copy
import io
import json
import math
import os
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from local_training import in_this_process, split
from PIL import Image
from pools import table_of
from signal_columns import dynamics

from coreset_ray.distributed.dynamics import record_dynamics
from coreset_ray.io.filesystem import locate
from coreset_ray.io.images import decode
from coreset_ray.io.tables import PartedTable, read_table, write_table
from coreset_ray.models import image_cache
from coreset_ray.models.dynamics import METRICS, measure
from coreset_ray.models.image_cache import CachedImages, ImageCache
from coreset_ray.models.images import IndexedImages, OwnedBatches
from coreset_ray.models.mlp import MlpRecipe
from coreset_ray.models.recipe import Recipe

SEED, N, PARTS = 7, 289, 3  # 289 = 9 · 32 + 1: a last batch of one row
MLP = MlpRecipe(hidden=16, epochs=5, batch_size=32, lr=0.01)


# ---- one batch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 7])
def test_a_batch_is_measured_as_by_hand(classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (50, 6, classes))
    logits[0], logits[1, :, 0] = 0, 300  # all alike; certain
    label = rng.integers(0, classes, 50)
    label[1] = 0
    expected, before = dynamics(logits, label), None
    for epoch in range(6):
        batch = torch.from_numpy(logits[:, epoch]).float()
        found, before = measure(batch, torch.from_numpy(label), before)
        assert tuple(found) == METRICS
        for name, values in found.items():
            truth = expected[f"dynamics.{name}"][:, epoch]
            assert str(values.dtype) == f"torch.{truth.dtype}"
            np.testing.assert_allclose(values, truth, rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_batch_far_from_its_label_stays_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 1e-6, 0.0]])
    first, log_p = measure(logits, torch.tensor([2, 1]), None)
    again, _ = measure(-logits, torch.tensor([2, 1]), log_p)
    for name in METRICS:
        assert first[name].isfinite().all() and again[name].isfinite().all(), name
    assert first["loss"][0] == 2e4 and first["error_norm"][0] == pytest.approx(math.sqrt(2))


# ---- who owns which row ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("rows", [6, 32, 50, 65, 97])
def test_every_row_is_once_in_an_epoch_and_always_with_its_owner(rows: int, workers: int) -> None:
    given = [OwnedBatches(rows, 16, seed=3, worker=r, workers=workers) for r in range(workers)]
    orders = []
    for epoch in range(3):
        for batches in given:
            batches.set_epoch(epoch)
        shares = [[[row for row, _ in batch] for batch in batches] for batches in given]
        for worker, (batches, own) in enumerate(zip(given, shares, strict=True)):
            assert sorted(chain.from_iterable(own)) == list(range(worker, rows, workers))
            assert own == [batches.row(places).tolist() for places in batches.own]
        steps = [[len(share) for share in step] for step in zip(*shares, strict=True)]
        assert [sum(step) for step in steps] == given[0].sizes and sum(given[0].sizes) == rows
        assert all(sum(step) == 16 for step in steps[:-1]) and len(steps) == len(given[0])
        assert all(min(step) >= 2 and max(step) - min(step) <= 1 for step in steps)
        orders.append(shares)
    assert orders[0] != orders[1] != orders[2]


def test_the_shuffle_does_not_depend_on_how_words_are_drawn(monkeypatch) -> None:
    def order() -> list:
        return [[list(b) for b in OwnedBatches(50, 8, seed=1, worker=r, workers=3)] for r in (0, 2)]

    whole = order()
    monkeypatch.setattr("coreset_ray.models.images._WORDS", 7)
    assert order() == whole


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images over 2 workers"):
        OwnedBatches(3, 8, seed=0, workers=2)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"hidden": 0}, {"epochs": 0}, {"batch_size": 1}, {"lr": math.nan}, {"lr": 0.0}),
        *({"weight_decay": -1.0}, {"precision": "int8"}, {"optimizer_name": "adam"}),
    ],
)
def test_recipe_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        MlpRecipe(**wrong)


# ---- images decoded once -----------------------------------------------------------------------


def noise(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Eleven images of noise, of several shapes, one after another in a file: path, offset, size
    and label of each."""
    rng, data = np.random.default_rng(0), []
    for i in range(11):
        sink = io.BytesIO()
        shape = (20 + 3 * (i % 3), 20 + 11 * (i % 2), 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(sink, "PNG")
        data.append(sink.getvalue())
    (folder / "images").write_bytes(b"".join(data))
    size = np.array([len(d) for d in data])
    return [str(folder / "images")] * 11, np.cumsum(size) - size, size, np.arange(11) % 2


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """However full the disk of whoever runs the tests is."""
    monkeypatch.setattr(image_cache, "_RESERVE", 0.0)


@pytest.mark.parametrize("image_size", [16, 40, 80])
def test_cached_images_are_the_images(tmp_path: Path, image_size: int, roomy) -> None:
    table, recipe = noise(tmp_path), Recipe(image_size=image_size)
    how: dict = {"decode": partial(decode, max_pixels=10**6), "transform": recipe.train_transform()}
    plain, cache = IndexedImages(*table, **how), ImageCache(tmp_path / "cache", 11)
    cached = CachedImages(*table, cache=cache, image_size=image_size, **how)
    other = copy.deepcopy(cached)  # a loading process
    first = [(cached if row % 2 else other)[row, 100 + row][0] for row in range(11)]
    assert cache.kept() == 11 and len(list((tmp_path / "cache").glob("*.rgb"))) == 2
    (tmp_path / "images").unlink()
    again = [(other if row % 2 else cached)[row, 100 + row][0] for row in range(11)]
    noise(tmp_path)
    for row in range(11):
        assert (first[row] == again[row]).all()
        assert (first[row] == plain[row, 100 + row][0]).all()


def test_large_images_are_shrunk_alike_whether_kept_or_not(tmp_path, monkeypatch, caplog) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    row = ([str(tmp_path / "one.png")], *np.array([[0], [(tmp_path / "one.png").stat().st_size]]))
    how: dict = {"decode": partial(decode, max_pixels=10**6), "transform": np.asarray}
    shown = []
    for reserve in (0.0, 1.1):
        monkeypatch.setattr(image_cache, "_RESERVE", reserve)
        cache = ImageCache(tmp_path / "cache", 1)
        cached = CachedImages(*row, np.zeros(1), cache=cache, image_size=98, **how)
        shown += [cached[0][0], cached[0][0]]
        assert cache.kept() == (reserve == 0) and cache.full == (reserve > 1)
    assert all((image == shown[0]).all() and image.shape == (168, 112, 3) for image in shown)
    assert caplog.text.count("nearly full") == 1


# ---- with Ray Train ----------------------------------------------------------------------------


def blobs(folder: Path, classes: int) -> tuple[PartedTable, dict[str, int], np.ndarray, Any]:
    """A table of blobs, a tenth of their labels wrong, and the labels' folder."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, N)
    z = rng.normal(0, 3, (classes, 6))[label] + rng.normal(size=(N, 6))
    label[::10] = rng.integers(0, classes, len(label[::10]))
    table, parts = table_of(folder / "table", z, PARTS)
    write_labels(folder / "labels", table, parts, label)
    return table, parts, label, locate(str(folder / "labels"))


def write_labels(folder: Path, table: PartedTable, parts: dict[str, int], label: Any) -> None:
    first = 0
    for part, rows in parts.items():
        uid = read_table(table.part(part), ["uid"])["uid"]
        own = pa.array(label[first : first + rows], pa.int32())
        write_table(
            locate(str(folder)) / f"part-{part}.parquet", pa.table([uid, own], ["uid", "label"])
        )
        first += rows


def record(folder: Path, data: tuple, name: str, **how: Any) -> tuple[dict, dict[str, np.ndarray]]:
    """The facts, and the columns over all parts, (n, epochs)."""
    table, parts, label, labels = data
    how = {"proxy": MLP, "classes": int(label.max()) + 1, "seed": SEED, **how}
    how = {"scratch": str(folder / f"scratch-{name}"), "storage_path": str(folder), **how}
    running, told = split({"name": f"train-{name}", "checkpoint_every": 5, **how})
    out = folder / name
    facts = record_dynamics(table, parts, labels, locate(str(out)), running=running, **told)
    return facts, columns(out, table, parts)


def columns(out: Path, table: PartedTable, parts: dict[str, int]) -> dict[str, np.ndarray]:
    read = [pq.read_table(out / f"part-{part}.parquet") for part in parts]
    for rows, part in zip(read, parts, strict=True):
        assert rows.column_names == ["uid", *METRICS]
        assert rows["uid"].equals(read_table(table.part(part), ["uid"])["uid"])
    return {m: np.concatenate([r[m].to_pylist() for r in read]) for m in METRICS}


def break_epoch(out: Path, epoch: int) -> Path:
    """Something in the place of an epoch's records, so that writing them fails."""
    place = out / "records" / f"epoch-{epoch:05d}"
    place.parent.mkdir(parents=True)
    place.touch()
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return blobs(tmp_path_factory.mktemp("blobs"), 4)


@pytest.fixture(scope="module")
def whole(data, ray_local, tmp_path_factory):
    """An uninterrupted run of one worker: its folder, facts and columns."""
    folder = tmp_path_factory.mktemp("whole")
    with in_this_process():
        return folder, *record(folder, data, "out")


def test_the_record_is_of_the_pass_that_trains(data, whole) -> None:
    """The same training in plain torch, its logits kept."""
    table, parts, label, _ = data
    z = np.concatenate([read_table(table.part(p))["embedding"].to_pylist() for p in parts])
    torch.manual_seed(SEED)
    deviation = z.std(axis=0, dtype=np.float64)
    model = MLP.build(4, z.mean(axis=0, dtype=np.float64), deviation)
    optimizer = torch.optim.AdamW(model.parameters(), MLP.lr, weight_decay=MLP.weight_decay)
    batches, logits = OwnedBatches(N, MLP.batch_size, seed=SEED), np.zeros((N, MLP.epochs, 4))
    steps, losses = MLP.epochs * len(batches), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(MLP.epochs):
        batches.set_epoch(epoch)
        for batch in batches:
            rows = [row for row, _ in batch]
            out = model(torch.tensor(z[rows], dtype=torch.float32))
            logits[rows, epoch] = out.detach()
            loss = torch.nn.functional.cross_entropy(out, torch.tensor(label[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    _, facts, found = whole
    for name, values in dynamics(logits, label).items():
        ours = found[name.removeprefix("dynamics.")]
        assert ours.shape == (N, MLP.epochs)
        np.testing.assert_allclose(ours, values, rtol=2e-3, atol=2e-5, err_msg=name)
    last = np.average(losses[-len(batches) :], weights=batches.sizes)
    assert facts["train_loss"] == pytest.approx(last, rel=1e-3)
    assert facts["accuracy"] == pytest.approx(found["correct"][:, -1].mean())
    assert 0.7 < facts["accuracy"] < 1


def test_facts_say_what_made_the_record(whole) -> None:
    folder, facts, _ = whole
    expected = {"proxy": "mlp", "epochs": 5, "images": N, "workers": 1, "classes": 4}
    assert expected.items() <= facts.items()
    assert (facts["device"], facts["precision"]) == ("cpu", "float32")
    json.dumps(facts)
    left = sorted(os.listdir(folder / "out"))
    assert left == [*(f"part-p{i}.parquet" for i in range(PARTS)), "training.json"]


def test_what_is_finished_is_not_done_again(data, whole) -> None:
    folder, facts, found = whole
    marks = {p: p.stat().st_mtime_ns for p in (folder / "out").iterdir()}
    again, same = record(folder, data, "out")
    assert {**again, "seconds": 0} == {**facts, "seconds": 0}
    assert marks == {p: p.stat().st_mtime_ns for p in (folder / "out").iterdir()}
    assert all((same[m] == found[m]).all() for m in METRICS)
    with pytest.raises(RuntimeError, match=r"training.json is of other data, .* or seed"):
        record(folder, data, "out", seed=8)
    part = folder / "out" / "part-p1.parquet"
    kept = part.read_bytes()
    part.unlink()
    with pytest.raises(RuntimeError, match="lacks 1 parts"):
        record(folder, data, "out")
    part.write_bytes(kept)


def test_resumed_equals_uninterrupted(data, whole, trainer, tmp_path: Path) -> None:
    """Epoch 3 fails after a checkpoint that holds epochs 0 and 1, whose records stay as they
    were (so what is changed in them remains); from there on the bits are the same."""
    obstacle = break_epoch(tmp_path / "out", 3)
    how = {"checkpoint_every": 2, "max_failures": 0}
    with pytest.raises(RuntimeError, match="train-out"):
        record(tmp_path, data, "out", **how)
    obstacle.unlink()
    file = tmp_path / "out/records/epoch-00001/worker-0-of-1.parquet"
    kept = pq.read_table(file)
    pq.write_table(kept.set_column(1, "margin", pa.array(np.full(N, 9, np.float32))), file)
    facts, found = record(tmp_path, data, "out", **how)
    _, expected, columns = whole
    assert (found["margin"][:, 1] == 9).all()
    found["margin"][:, 1] = columns["margin"][:, 1]
    for name in METRICS:
        np.testing.assert_array_equal(found[name], columns[name], err_msg=name)
    assert {**facts, "seconds": 0} == {**expected, "seconds": 0}


@pytest.mark.slow
def test_two_workers_then_one(ray_local, tmp_path: Path) -> None:
    """Each row is recorded by its owner, also where that changes: of two classes, `change`
    follows from the probabilities of the label in two epochs."""
    data = blobs(tmp_path, 2)
    obstacle = break_epoch(tmp_path / "out", 3)
    with pytest.raises(RuntimeError, match="train-out"):
        record(tmp_path, data, "out", checkpoint_every=2, max_failures=0, workers=2)
    obstacle.unlink()
    rows = [
        pq.read_table(tmp_path / f"out/records/epoch-00001/worker-{r}-of-2.parquet")["row"]
        for r in (0, 1)
    ]
    assert [r.to_pylist() for r in rows] == [list(range(r, N, 2)) for r in (0, 1)]
    facts, found = record(tmp_path, data, "out", checkpoint_every=2)
    assert facts["workers"] == 1 and facts["accuracy"] > 0.7
    target = found["target_probability"].astype(np.float64)
    p = np.stack([target, 1 - target])
    change = np.abs(p[..., 1:] * np.diff(np.log(p))).sum(axis=0)
    assert (change > 1e-4).mean() > 0.9
    np.testing.assert_allclose(found["change"][:, 1:], change, rtol=2e-3, atol=1e-5)
    assert (found["change"][:, 0] == 0).all()


def test_a_loss_that_blows_up_is_told(data, trainer, tmp_path: Path) -> None:
    wild = MlpRecipe(hidden=16, epochs=5, batch_size=32, lr=1e30)
    with pytest.raises(RuntimeError, match=r"the loss was .* at epoch 0, step \d.*lower lr=1e\+30"):
        record(tmp_path, data, "out", proxy=wild, max_failures=100)


def test_a_resnet_on_images_decodes_each_once(trainer, tmp_path: Path, roomy) -> None:
    """Dark and bright images in a table of another order; what opens their file counts."""
    n, rng = 41, np.random.default_rng(0)
    label = np.arange(n) % 2
    table, parts = table_of(tmp_path / "table", np.ones((n, 2)), 2)
    write_labels(tmp_path / "labels", table, parts, label)
    uid = pa.concat_tables([read_table(table.part(p), ["uid"]) for p in parts])["uid"]
    data = []
    for bright in label:
        sink = io.BytesIO()
        pixels = rng.integers(0, 90, (10, 12, 3), np.uint8) + 160 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(sink, "PNG")
        data.append(sink.getvalue())
    (tmp_path / "shard").write_bytes(b"".join(data))
    size = np.array([len(d) for d in data])
    where = {"offset": np.cumsum(size) - size, "size": size}
    images = pa.table({"uid": uid, "path": [str(tmp_path / "shard")] * n, **where})[::-1]
    given = (table, parts, label, locate(str(tmp_path / "labels")))
    proxy = Recipe(epochs=3, batch_size=8, image_size=8, lr=0.02, padding=1)
    how = {"proxy": proxy, "images": images, "open_file": counting(tmp_path / "reads")}
    facts, found = record(tmp_path, given, "out", **how)
    assert len((tmp_path / "reads").read_text()) == n  # in three epochs
    assert facts["proxy"] == "resnet18" and facts["cached"] == 1 and facts["images"] == n
    assert found["margin"].shape == (n, 3) and found["correct"][:, -1].mean() > 0.8
    with pytest.raises(ValueError, match=r"lacks 1 of the pool's 41"):
        record(tmp_path, given, "other", **{**how, "images": images[1:]})
    with pytest.raises(ValueError, match="has no column 'path'"):
        record(tmp_path, given, "other", **{**how, "images": images.select(["uid"])})


def counting(log: Path) -> Any:
    """An opener of files, each read of which adds a letter to the log."""

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            with log.open("a") as sink:
                sink.write("x")
            return super().read(size)

    return lambda path: Counted(path, "rb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 3}, r"part-p0.parquet has label 3 in row \d+ .*with classes=3"),
        ({"classes": 1}, "classes=1: expected at least 2"),
        ({"workers": 20}, "batch_size=32 over 20 workers"),
        ({"workers": 200}, "289 images over 200 workers"),
        ({"seed": -1}, "seed=-1"),
        ({"images": pa.table({"uid": ["a"]})}, "an MLP trains on embeddings"),
    ],
)
def test_refused_before_training(data, ray_local, tmp_path: Path, change, message) -> None:
    with pytest.raises(ValueError, match=message):
        record(tmp_path, data, "out", **change)
    assert not list(tmp_path.iterdir())


def test_labels_that_do_not_fit_are_refused(data, ray_local, tmp_path: Path) -> None:
    table, parts, label, _ = data
    write_labels(tmp_path, table, parts, label)
    given = (table, parts, label, locate(str(tmp_path)))
    last = tmp_path / "part-p2.parquet"
    rows = pq.read_table(last)
    for wrong, message in [
        (rows[1:], r"part-p2.parquet holds labels of other images than part 'p2'"),
        (rows.take(pa.array(range(len(rows))[::-1])), r"part 'p2' .* or in another order"),
        (rows.set_column(1, "label", pa.nulls(len(rows), pa.int32())), "rows without a label"),
    ]:
        pq.write_table(wrong, last)
        with pytest.raises(ValueError, match=message):
            record(tmp_path, given, "out")
    last.unlink()
    with pytest.raises(ValueError, match=r"part-p2.parquet is missing: make the pseudo-labels"):
        record(tmp_path, given, "out")
