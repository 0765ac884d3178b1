"""Training a ResNet on images inside tar shards: the recipe, the batches, and Ray Train."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from local_training import split
from PIL import Image
from sklearn.datasets import load_digits

from coreset_ray.distributed.train import train_and_test
from coreset_ray.io.images import decode
from coreset_ray.models.images import EpochBatches, IndexedImages
from coreset_ray.models.recipe import Recipe, batch_loss, own_loss
from coreset_ray.models.resnet import build_resnet

SMALL = Recipe(epochs=3, batch_size=32, image_size=8, lr=0.02, padding=0, flip=False)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """700 digits, 8 x 8 pixels, in seven shards, in the digits' own (mixed) order."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, target = map(np.asarray, load_digits(return_X_y=True))
    rows: dict[str, list] = {k: [] for k in ("path", "offset", "size", "label", "weight")}
    for shard in range(7):
        path = folder / f"{shard:05d}.tar"
        chosen = range(100 * shard, 100 * shard + 100)
        with tarfile.open(path, "w") as tar:
            for i in chosen:
                _add(tar, f"{i:06d}.png", _png(pixels[i].reshape(8, 8)))
                _add(tar, f"{i:06d}.cls", str(target[i]).encode())
        with tarfile.open(path) as tar:
            for i, member in zip(chosen, tar.getmembers()[::2], strict=True):
                values = str(path), member.offset_data, member.size, int(target[i]), i / 700
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
    types = pa.string(), pa.int64(), pa.int64(), pa.int32(), pa.float32()
    return pa.table({k: pa.array(v, t) for (k, v), t in zip(rows.items(), types, strict=True)})


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray((pixels * 15).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _images(table: pa.Table, **how) -> IndexedImages:
    columns = table["path"].to_pylist(), *(table[k].to_numpy() for k in ("offset", "size", "label"))
    how = {"transform": Recipe(image_size=8).train_transform(), **how}
    return IndexedImages(*columns, decode=lambda data: decode(data, 10**6), **how)


# ---- the recipe --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("resnet34", 8), ("resnet50", 96)])
def test_resnet_shapes(name: str, size: int) -> None:
    model = build_resnet(name, 7, size).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert isinstance(model.maxpool, torch.nn.Identity) == (size <= 64)


def test_transforms_give_the_size_asked_for() -> None:
    wide = Image.new("RGB", (50, 20))
    for size in (8, 32, 64, 96):
        recipe = Recipe(image_size=size)
        for transform in (recipe.train_transform(), recipe.test_transform()):
            out = transform(wide)
            assert out.shape == (3, size, size) and out.dtype == torch.float32


def test_digits_are_not_mirrored_when_flip_is_off() -> None:
    ramp = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8) * 30, (8, 1))).convert("RGB")
    for flip, expected in ((True, {True, False}), (False, {False})):
        transform = Recipe(image_size=8, padding=0, flip=flip).train_transform()
        torch.manual_seed(0)
        outs = [transform(ramp) for _ in range(20)]
        assert {bool(out[0, 0, 0] > out[0, 0, -1]) for out in outs} == expected


def test_loss_is_mean_loss_times_mean_weight() -> None:
    torch.manual_seed(0)
    logits, label, weight = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.rand(6)
    by_hand = -torch.log_softmax(logits, 1)[torch.arange(6), label].mean()
    assert torch.isclose(batch_loss(logits, label, None), by_hand)
    assert batch_loss(logits, label, torch.ones(6)) == batch_loss(logits, label, None)
    assert torch.isclose(batch_loss(logits, label, weight), by_hand * weight.mean())
    assert not torch.isclose(batch_loss(logits, label, weight), by_hand)
    own = [-torch.log_softmax(row, 0)[c] for row, c in zip(logits, label, strict=True)]
    expected = sum(w * loss for w, loss in zip(weight, own, strict=True)) / len(own)
    assert torch.isclose(own_loss(logits, label, weight), expected)


def test_schedule_is_torchs_cosine() -> None:
    recipe = Recipe(lr=0.3, min_lr=0.01)
    optimizer = recipe.optimizer(torch.nn.Linear(2, 2))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0.01)
    for step in range(40):
        assert math.isclose(recipe.learning_rate(step, 40), schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": "vgg"},
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": -1.0},
        {"lr": math.nan},
        {"min_lr": 1.0},
    ],
)
def test_recipe_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Recipe(**wrong)


# ---- images and batches ------------------------------------------------------------------------


def test_images_are_read_by_offset_and_files_opened_once(digits: pa.Table) -> None:
    opened: list[str] = []

    def open_file(path: str):
        opened.append(path)
        return open(path, "rb")

    images = _images(digits, open_file=open_file, transform=np.asarray)
    truth, target = map(np.asarray, load_digits(return_X_y=True))
    for row in (699, 0, 350, 1, 698):
        image, label = images[row]
        assert label == target[row]
        assert (image[..., 0].ravel() == truth[row] * 15).all()
    assert len(opened) == len(set(opened)) == 3


def test_augmentation_is_a_function_of_the_seed(digits: pa.Table) -> None:
    images = _images(digits)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = images[3, 11][0]
    assert (torch.random.get_rng_state() == before).all()
    torch.manual_seed(6)
    assert (images[3, 11][0] == first).all()
    assert any((images[3, seed][0] != first).any() for seed in range(5))


def test_a_short_or_wrong_member_is_named(digits: pa.Table) -> None:
    images = _images(digits)
    images.offset = images.offset + 10**7
    with pytest.raises(ValueError, match=r"00000\.tar.*ends after 0 of"):
        images[0]


def test_batches_cover_every_row_whatever_the_workers() -> None:
    for workers in (1, 2, 3):
        shares = [EpochBatches(50, 8, seed=3, worker=r, workers=workers) for r in range(workers)]
        for epoch in (0, 4):
            for share in shares:
                share.set_epoch(epoch)
            whole = [
                sorted(k for part in parts for k in part) for parts in zip(*shares, strict=True)
            ]
            alone = EpochBatches(50, 8, seed=3)
            alone.set_epoch(epoch)
            kept = [sorted(batch) for batch in alone]
            assert whole == kept[: len(whole)]  # 50 = 6 · 8 + 2: three workers drop the last two
            assert len(whole) == (6 if workers > 1 else 7)
    rows = [row for batch in EpochBatches(50, 8, seed=3) for row, _ in batch]
    assert sorted(rows) == list(range(50)) and rows != list(range(50))


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, [2]), (20, [20]), (129, [128]), (130, [128, 2])]
)
def test_small_and_last_batches(rows: int, expected: list[int]) -> None:
    batches = EpochBatches(rows, 128, seed=0)
    assert [len(batch) for batch in batches] == expected
    everything = set()
    for epoch in range(3):
        batches.set_epoch(epoch)
        everything |= {row for batch in batches for row, _ in batch}
    assert everything == set(range(rows))


def test_one_image_gives_batch_normalisation_two_rows() -> None:
    """(8 pixels end as 1 x 1 features, which a batch of one cannot normalise.)"""
    rows = len(next(iter(EpochBatches(1, 128, seed=0))))
    logits = build_resnet("resnet18", 3, 8).train()(torch.randn(1, 3, 8, 8).repeat(rows, 1, 1, 1))
    assert logits.isfinite().all()


# ---- with Ray Train ----------------------------------------------------------------------------


def _run(table: pa.Table, folder: Path, name: str, recipe: Recipe = SMALL, **how) -> dict:
    told = {"classes": 10, "seed": 1, "name": name, "storage_path": str(folder), **how}
    running, settings = split(told)
    test = settings.pop("test", table)
    return train_and_test(table, test, recipe, running=running, **settings)


def _fails_once(marker: Path, reads: int):
    """An opener whose files fail at the `reads`-th read of a process, unless a marker is there."""

    class Flaky(io.FileIO):
        count = 0

        def read(self, size: int | None = -1, /) -> bytes:
            Flaky.count += 1
            if Flaky.count == reads and not marker.exists():
                marker.touch()
                raise OSError("the network is gone")
            return super().read(size)

    return lambda path: Flaky(path, "rb")


@pytest.fixture(scope="module")
def whole(ray_local: None, digits: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """An uninterrupted run; its folder is kept under "folder"."""
    folder = tmp_path_factory.mktemp("whole")
    return {"folder": folder, **_run(digits[:500], folder, "whole", test=digits[500:])}


def _same(one: dict, other: dict) -> bool:
    return all(one[k] == other[k] for k in ("accuracy", "train_loss", "epochs"))


def test_learns(whole: dict) -> None:
    assert whole["accuracy"] > 0.6 and whole["train_loss"] < 1
    assert whole["images"] == 500 and whole["test_images"] == 200 and whole["epochs"] == 3
    assert (whole["device"], whole["precision"], whole["workers"]) == ("cpu", "float32", 1)
    json.dumps({k: v for k, v in whole.items() if k != "folder"})


@pytest.mark.usefixtures("trainer")
def test_a_failure_in_the_middle_changes_nothing(
    digits: pa.Table, tmp_path: Path, whole: dict
) -> None:
    """Same seed, same answer, and a worker that fails in epoch 2 goes on from epoch 1."""
    marker = tmp_path / "failed"
    how = {"open_file": _fails_once(marker, 700), "checkpoint_every": 1}
    out = _run(digits[:500], tmp_path, "flaky", test=digits[500:], **how)
    assert marker.exists() and _same(out, whole)


@pytest.mark.usefixtures("trainer")
def test_dropout_goes_on_as_if_nothing_had_failed(digits: pa.Table, tmp_path: Path) -> None:
    marker, dropping = tmp_path / "failed", replace(SMALL, model="mobilenet_v3_small", epochs=2)
    how = {"open_file": _fails_once(marker, 90), "checkpoint_every": 1}
    flaky = _run(digits[:64], tmp_path, "flaky", dropping, **how)
    assert marker.exists() and _same(flaky, _run(digits[:64], tmp_path, "calm", dropping))


@pytest.mark.usefixtures("trainer")
def test_a_name_is_resumed_or_refused(digits: pa.Table, whole: dict) -> None:
    """A finished name is tested again, not trained again; other training may not have it."""
    assert _same(_run(digits[:500], whole["folder"], "whole", test=digits[500:]), whole)
    with pytest.raises(RuntimeError, match="choose another name"):
        _run(digits[:500], whole["folder"], "whole", seed=2, max_failures=3)


@pytest.mark.slow
def test_loader_processes_change_nothing(digits: pa.Table, tmp_path: Path, whole: dict) -> None:
    assert _same(_run(digits[:500], tmp_path, "l", test=digits[500:], loader_workers=1), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_two_workers_and_an_exact_count(digits: pa.Table, tmp_path: Path) -> None:
    out = _run(digits[:501], tmp_path, "two", test=digits[501:], workers=2)
    assert out["test_images"] == 199 and out["workers"] == 2 and out["accuracy"] > 0.5


@pytest.mark.usefixtures("trainer")
def test_one_image_trains(digits: pa.Table, tmp_path: Path) -> None:
    one_image(digits, tmp_path, 1)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
def test_one_image_trains_on_two_workers(digits: pa.Table, tmp_path: Path) -> None:
    one_image(digits, tmp_path, 2)


def one_image(digits: pa.Table, tmp_path: Path, workers: int) -> None:
    recipe = Recipe(epochs=1, image_size=8, padding=1)
    out = _run(digits[:1], tmp_path, "one", recipe, test=digits[:3], workers=workers)
    assert out["images"] == 1 and out["test_images"] == 3 and math.isfinite(out["train_loss"])


@pytest.mark.usefixtures("trainer")
def test_weight_scales_the_loss(digits: pa.Table, tmp_path: Path) -> None:
    """One batch, so the first loss is the plain one times the mean weight."""
    table = digits[:129]
    plain, weighted = (
        _run(table, tmp_path, f"w{on}", Recipe(epochs=1, batch_size=256, image_size=8, weighted=on))
        for on in (False, True)
    )
    mean = float(table["weight"].to_numpy().mean())
    assert math.isclose(weighted["train_loss"], plain["train_loss"] * mean, rel_tol=1e-5)


@pytest.mark.usefixtures("trainer")
def test_each_image_may_have_its_own_weight(digits: pa.Table, tmp_path: Path) -> None:
    """In one batch: halves of all are half the loss, and the mean weight alone does not tell it."""
    table, one = digits[:129], Recipe(epochs=1, batch_size=256, image_size=8)
    place = table.column_names.index("weight")

    def loss(name: str, weight: np.ndarray | None, recipe: Recipe) -> float:
        told = table if weight is None else table.set_column(place, "weight", pa.array(weight))
        return _run(told, tmp_path, name, recipe)["train_loss"]

    plain, each = loss("plain", None, one), replace(one, weighted="each")
    assert math.isclose(loss("half", np.full(129, 0.5), each), plain / 2, rel_tol=1e-5)
    first = (np.arange(129) < 64) * 129 / 64.0
    assert not math.isclose(loss("first", first, each), plain, rel_tol=1e-3)


@pytest.mark.usefixtures("trainer")
def test_a_loss_that_blows_up_is_told_at_once(digits: pa.Table, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=32, image_size=8, lr=1e30)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"epoch 0, step \d.*lower lr=1e\+30"):
        _run(digits[:128], tmp_path, "nan", recipe, max_failures=100)
    assert time.monotonic() - started < 300  # retries would take longer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 9}, "label 9 .*classes=9"),
        ({"test": None}, "test table has no rows"),
        ({"workers": 40}, "batch_size=32 over 40 workers"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_refused_before_ray(digits: pa.Table, tmp_path: Path, change: dict, message: str) -> None:
    change = {"name": "x", **change}
    if "test" in change:
        change["test"] = digits[:0]
    with pytest.raises(ValueError, match=message):
        _run(digits, tmp_path, recipe=SMALL, **change)
    assert not list(tmp_path.iterdir())


_DRIVER = """
import sys, ray, pyarrow.parquet as pq
from coreset_ray.distributed.fit import Running
from coreset_ray.distributed.train import train_and_test
from coreset_ray.models.recipe import Recipe
folder, recipe = sys.argv[1], Recipe({recipe})
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
table = pq.read_table(folder + "/table.parquet")
train_and_test(table, table, recipe, classes=10, seed=1,
               running=Running("killed", folder, checkpoint_every=1))
"""


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
def test_resumed_equals_uninterrupted(digits: pa.Table, tmp_path: Path) -> None:
    """A driver on a cluster of its own, killed with it after its first checkpoint."""
    table, epochs = digits[:300], 12
    pq.write_table(table, tmp_path / "table.parquet")
    recipe = Recipe(epochs=epochs, batch_size=32, image_size=8, padding=1)
    arguments = f"epochs={epochs}, batch_size=32, image_size=8, padding=1"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER.replace("{recipe}", arguments), str(tmp_path)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    snapshot = tmp_path / "killed" / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 180
    while not snapshot.exists() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL and snapshot.exists()
    time.sleep(3)  # the killed driver's workers notice and end
    done = json.loads(snapshot.read_text())["latest_checkpoint_result"]["metrics"]["epoch"]
    assert 1 <= done < epochs
    resumed = _run(table, tmp_path, "killed", recipe, test=table, checkpoint_every=1)
    whole = _run(table, tmp_path, "whole", recipe, test=table)
    assert resumed["epochs"] == whole["epochs"] == epochs
    assert resumed["accuracy"] == whole["accuracy"]
    assert resumed["train_loss"] == whole["train_loss"]
