"""The classifiers that gradients and boundaries are read from, and labels that are given: from
shards to a selection, and against slow, obvious forms."""

import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from local_training import in_this_process, split
from pools import digits_pool, embed_pixels, read_shard, without_labels, write_config
from signal_columns import pool_with_signals
from torch import nn

from coreset_ray import catalog
from coreset_ray.config import fingerprint, load
from coreset_ray.core.corrupt import Corruption
from coreset_ray.core.pool import Pool
from coreset_ray.distributed.evaluations import training_rows
from coreset_ray.distributed.given_labels import GivenLabels, write_given_labels
from coreset_ray.distributed.proxy import train_proxy
from coreset_ray.io.filesystem import locate
from coreset_ray.io.shards import list_shards
from coreset_ray.io.tables import array_of, matrix, read_table
from coreset_ray.models.deepfool import deepfool
from coreset_ray.models.images import OwnedBatches
from coreset_ray.models.mlp import Mlp, MlpRecipe, ProxyRecipe
from coreset_ray.models.proxy import build_runs, measure_runs, runs_of
from pipelines import run, select_coreset, signals
from pipelines.inputs import filled, pool_table

RECIPE = {"epochs": 3, "hidden": 16, "batch_size": 32, "lr": 0.01}
GRAND = {
    "score": {"method": "grand"},
    "signals": {"labels": "cls", "seed": 3, "proxy": {"runs": 3, "params": RECIPE}},
    "select": {"budget": 0.2, "balance": "pseudo_labels"},
}


# ---- DeepFool ----------------------------------------------------------------------------------


def network(weight: np.ndarray, bias: np.ndarray) -> nn.Sequential:
    """A linear classifier, weight (c, m), written as ReLU(x) - ReLU(-x) times it."""
    m = weight.shape[1]
    first, last = nn.Linear(m, 2 * m), nn.Linear(2 * m, len(weight))
    with torch.no_grad():
        first.weight.copy_(torch.cat([torch.eye(m), -torch.eye(m)]))
        first.bias.zero_()
        last.weight.copy_(torch.tensor(np.concatenate([weight, -weight], axis=1)))
        last.bias.copy_(torch.tensor(bias))
    return nn.Sequential(first, nn.ReLU(), last)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_of_a_linear_classifier_it_is_the_nearest_hyperplane(classes: int) -> None:
    rng = np.random.default_rng(classes)
    weight, bias = rng.normal(size=(classes, 5)), rng.normal(size=classes)
    # Far from 0 in each dimension, so that no step crosses a fold of the ReLU.
    z = rng.choice([-1, 1], (40, 5)) * rng.uniform(90, 110, (40, 5))
    found, changed = deepfool(network(weight, bias), torch.tensor(z))
    for row, moved in zip(z, found.numpy(), strict=True):
        f = weight @ row + bias
        y = f.argmax()
        apart = weight - weight[y]
        away = [np.inf if k == y else (f[y] - f[k]) / np.linalg.norm(apart[k])
                for k in range(classes)]  # fmt: skip
        nearest = int(np.argmin(away))
        if away[nearest] < 80:
            expected = 1.02 * away[nearest] * apart[nearest] / np.linalg.norm(apart[nearest])
            np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-5)
    assert changed.all()


def by_autograd(layers: nn.Sequential, given: torch.Tensor, steps: int) -> torch.Tensor:
    """Algorithm 2 for one row, a gradient a class."""
    moved, start = torch.zeros_like(given), layers(given).argmax()
    for _ in range(steps):
        at = given + 1.02 * moved
        f = layers(at)
        if f.argmax() != start:
            break
        slope = torch.autograd.functional.jacobian(layers, at)
        away = (f - f[start]).abs() / torch.linalg.vector_norm(slope - slope[start], dim=1)
        away[start] = torch.inf
        k = away.argmin()
        w = slope[k] - slope[start]
        moved = moved + (f[k] - f[start]).abs() / w.square().sum() * w
    return 1.02 * moved


@pytest.mark.parametrize("steps", [1, 50])
def test_a_network_is_fooled_as_by_autograd(steps: int) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
    layers[2].weight.data *= 6
    given = torch.randn(60, 6, dtype=torch.float64) * 3
    found, changed = deepfool(layers, given, steps=steps)
    layers.double()
    for row, moved in zip(given, found, strict=True):
        torch.testing.assert_close(moved, by_autograd(layers, row, steps), rtol=1e-6, atol=1e-9)
    other = layers(given).argmax(1) != layers(given + found).argmax(1)
    assert (other == changed).all()
    assert changed.all() if steps == 50 else 0 < changed.sum() < 60


def test_what_cannot_be_moved_is_infinitely_far_and_a_tie_hardly_at_all() -> None:
    model = Mlp(np.zeros(2), np.ones(2), 3, 2)
    with torch.no_grad():
        for layer in (model.layers[0], model.layers[2]):
            layer.weight.fill_(0.0)  # type: ignore[union-attr]
            layer.bias.fill_(0.0)  # type: ignore[union-attr]
        model.layers[0].weight[0, 0] = 1  # type: ignore[index]
        model.layers[2].weight[1, 0] = 1  # type: ignore[index]
        model.layers[2].bias[0] = 2  # type: ignore[index]
    z = np.array([[-5, 0], [1, 3], [2, 0]], np.float32)  # unit off; on; a tie
    found = measure_runs(build_like(model), z, np.zeros(3))["perturbation"]
    assert found[0] == np.inf and found[1] == pytest.approx(1.02)
    assert 0 < found[2] < 1e-4
    pool = Pool(np.zeros((3, 2), np.uint64), {"proxy.perturbation": found})
    ranked = catalog.build("deepfool", {}).score(pool, 0)  # type: ignore[attr-defined]
    assert np.isfinite(ranked).all() and ranked.argsort().tolist() == [0, 1, 2]


def build_like(model: Mlp) -> Any:
    """One run of this model."""
    return runs_of({f"models.0.{name}": value for name, value in model.state_dict().items()})


# ---- what is measured --------------------------------------------------------------------------


def test_gradients_are_those_of_the_last_layer() -> None:
    rng = np.random.default_rng(0)
    z, label = rng.normal(size=(30, 8)).astype(np.float32), rng.integers(0, 5, 30)
    models = build_runs(ProxyRecipe(hidden=12), 5, z.mean(0), z.std(0), [7, 8])
    found = measure_runs(models, z, label)
    for run_ in range(2):
        model = models.run(run_)
        last = model.layers[2]
        for i in range(30):
            loss = nn.functional.cross_entropy(model(torch.tensor(z[i : i + 1])),
                                               torch.tensor(label[i : i + 1]))  # fmt: skip
            slopes = torch.autograd.grad(loss, list(last.parameters()))
            norm = torch.cat([s.flatten() for s in slopes]).norm().item()
            assert found["gradient_norm"][i, run_] == pytest.approx(norm, rel=1e-4)
    first = models.run(0)
    logits = first(torch.tensor(z))
    np.testing.assert_allclose(found["probability"], logits.softmax(1).detach(), rtol=1e-4)
    again = torch.tensor(found["feature"]) @ first.layers[2].weight.T + first.layers[2].bias
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-5)
    assert found["feature"].shape == (30, 12) and (found["feature"] >= 0).all()


def test_numbers_of_a_row_do_not_depend_on_its_batch(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    z, label = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 5, 50)
    models = build_runs(ProxyRecipe(hidden=12), 5, z.mean(0), z.std(0), [7, 8])
    whole = measure_runs(models, z, label)
    monkeypatch.setattr("coreset_ray.models.proxy._ROWS", 7)
    for name, values in measure_runs(models, z[::-1].copy(), label[::-1]).items():
        np.testing.assert_allclose(values[::-1], whole[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_only_a_proxy_may_be_untrained() -> None:
    assert ProxyRecipe(epochs=0).epochs == 0
    with pytest.raises(ValueError, match="epochs=-1: expected at least 0"):
        ProxyRecipe(epochs=-1)
    with pytest.raises(ValueError, match="epochs=0: expected at least 1"):
        MlpRecipe(epochs=0)


def test_grand_is_the_mean_over_runs() -> None:
    rng = np.random.default_rng(0)
    of = pool_with_signals(rng.normal(size=(20, 4)), np.arange(40, dtype=np.uint64).reshape(20, 2))
    found = catalog.build("grand", {}).score(of, 0)  # type: ignore[attr-defined]
    norms = of["proxy.gradient_norm"].tolist()
    np.testing.assert_allclose(found, [sum(row) / len(row) for row in norms], rtol=1e-12)


# ---- from shards to a selection ----------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_local):
    """The configuration of a run of GraNd on labels that are given."""
    folder = tmp_path_factory.mktemp("grand")
    train, _ = digits_pool(folder, shards=3, each=60)
    path = write_config(folder, train, **GRAND)
    embed_pixels(pool_table(load(path)))
    with in_this_process():
        run.run(load(path))
    return path


def columns_of(config) -> dict[str, np.ndarray]:
    """The proxy's columns over all parts."""
    stage, record = signals.finished(config, "proxy")
    read = [pq.read_table(f"{stage.folder.path}/part-{p}.parquet") for p in record["parts"]]
    assert read[0].column_names == [
        *("uid", "label", "probability", "feature", "gradient_norm", "perturbation")
    ]
    return {n: np.concatenate([array_of(t[n]) for t in read]) for n in read[0].column_names}


def embeddings_of(config) -> np.ndarray:
    table = pool_table(config)
    parts = filled(table.snapshot())
    return np.concatenate([matrix(read_table(table.parts.part(p))["embedding"]) for p in parts])


def truth_of(config) -> dict[str, str]:
    """uid → .cls, from the shards."""
    table, found = pool_table(config), {}
    for part in filled(table.snapshot()):
        rows = read_table(table.parts.part(part), ["uid", "shard", "key"]).to_pylist()
        shard = {s["__key__"]: s for s in read_shard(config.pool.shards[0], rows[0]["shard"])}
        found |= {row["uid"]: shard[row["key"]]["cls"].decode() for row in rows}
    return found


def trained(z: np.ndarray, label: np.ndarray, seed: int, workers: int = 1) -> Mlp:
    """One run alone, in plain torch, on the batches that so many workers share."""
    recipe = ProxyRecipe(**RECIPE)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    model = recipe.build(10, z.mean(axis=0, dtype=np.float64), z.std(axis=0, dtype=np.float64))
    optimizer = recipe.optimizer(model)
    shares = [
        OwnedBatches(len(z), recipe.batch_size, seed=seed, worker=w, workers=workers)
        for w in range(workers)
    ]
    steps = recipe.epochs * len(shares[0])
    for step in range(steps):
        epoch, number = divmod(step, len(shares[0]))
        for share in shares:
            share.set_epoch(epoch)
        rows = np.concatenate([share.row(share.own[number]) for share in shares])
        optimizer.param_groups[0]["lr"] = recipe.learning_rate(step, steps)
        out = model(torch.tensor(z[rows]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(out, torch.tensor(label[rows]).long()).backward()
        optimizer.step()
    return model


def test_each_run_is_a_training_of_its_own(finished) -> None:
    config = load(finished)
    found, z = columns_of(config), embeddings_of(config)
    stage, record = signals.finished(config, "proxy")
    state = torch.load(f"{stage.folder.path}/models.pt", weights_only=True)["models"]
    models = runs_of(state)
    z_std = z.std(axis=0, dtype=np.float64)
    assert (z_std > 0).all()
    expected = measure_runs(build_like(trained(z, found["label"], 3)), z, found["label"])
    for name in ("probability", "feature", "perturbation"):
        np.testing.assert_allclose(found[name], expected[name], rtol=5e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        found["gradient_norm"][:, :1], expected["gradient_norm"], rtol=5e-3, atol=1e-4
    )
    first = 0
    for rows in record["parts"].values():  # batches start anew in each part
        part = slice(first, first + rows)
        for name, values in measure_runs(models, z[part], found["label"][part]).items():
            np.testing.assert_array_equal(values, found[name][part], err_msg=name)
        first += rows
    spread = found["gradient_norm"].std(axis=1)
    assert found["gradient_norm"].shape == (180, 3) and (spread > 0).all()
    accuracy = (found["probability"].argmax(1) == found["label"]).mean()
    assert record["accuracy"] == pytest.approx(accuracy) and accuracy > 0.3
    assert record["runs"] == 3 and record["epochs"] == 3 and record["unmoved"] == 0


def test_grand_keeps_the_largest_gradients_of_each_class(finished) -> None:
    config = load(finished)
    found = columns_of(config)
    stage, _ = select_coreset.finished(config)
    kept = pq.read_table(f"{stage.folder.path}/manifest.parquet")["uid"].to_pylist()
    mean = dict(zip(found["uid"], found["gradient_norm"].astype(float).mean(1), strict=True))
    label = dict(zip(found["uid"], found["label"], strict=True))
    assert len(kept) == 36
    for c in range(10):
        own = sorted((u for u in label if label[u] == c), key=lambda u: -mean[u])
        count = sum(label[u] == c for u in kept)
        assert {u for u in kept if label[u] == c} == set(own[:count]) and count >= 3


def test_what_is_finished_is_not_done_again(finished) -> None:
    config = load(finished)
    stage, record = signals.finished(config, "proxy")
    before = {p: p.stat().st_mtime_ns for p in Path(stage.folder.path).glob("*")}
    assert signals.run(config, ["proxy"])["signals"]["proxy"] == record
    assert before == {p: p.stat().st_mtime_ns for p in Path(stage.folder.path).glob("*")}


def test_a_lost_part_is_measured_again_and_other_data_are_refused(finished, tmp_path) -> None:
    config = load(finished)
    stage, record = signals.finished(config, "proxy")
    shutil.copytree(stage.folder.path, tmp_path / "out")
    lost = tmp_path / "out" / f"part-{next(iter(record['parts']))}.parquet"
    kept = pq.read_table(lost)
    lost.unlink()
    assert train(config, tmp_path)["accuracy"] == record["accuracy"]
    assert pq.read_table(lost).equals(kept)
    with pytest.raises(RuntimeError, match=r"models.pt is of other data, .* or seed: delete"):
        train(config, tmp_path, seed=4)


def train(config, folder: Path, **how: Any) -> dict[str, Any]:
    labels = signals.finished(config, "pseudo_labels")[0].folder
    table = pool_table(config)
    told = {"recipe": ProxyRecipe(**RECIPE), "runs": 3, "classes": 10, "seed": 3, **how}  # type: ignore[arg-type]
    running, told = split({"name": "proxy", "storage_path": str(folder / "training"), **told})
    return train_proxy(
        *(table.parts, filled(table.snapshot()), labels, locate(str(folder / "out"))),
        **told,
        scratch=str(folder / "scratch"),
        running=running,
    )


class Breaks(ProxyRecipe):
    """Fails in the second epoch."""

    after: ClassVar[int] = 10

    def learning_rate(self, step: int, steps: int) -> float:
        if step >= self.after:
            raise OSError("the machine was lost")
        return super().learning_rate(step, steps)


def test_resumed_equals_uninterrupted(finished, trainer, tmp_path) -> None:
    config = load(finished)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    how: dict[str, Any] = {"checkpoint_every": 1, "max_failures": 0}
    try:
        with pytest.raises(RuntimeError, match="the machine was lost"):
            train(config, tmp_path, recipe=Breaks(**RECIPE), **how)  # type: ignore[arg-type]
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    train(config, tmp_path, **how)
    stage, record = signals.finished(config, "proxy")
    for part in record["parts"]:
        own = pq.read_table(tmp_path / "out" / f"part-{part}.parquet")
        assert own.equals(pq.read_table(f"{stage.folder.path}/part-{part}.parquet"))


def test_untrained(finished, trainer, tmp_path) -> None:
    recipe = ProxyRecipe(**RECIPE | {"epochs": 0})  # type: ignore[arg-type]
    facts = train(load(finished), tmp_path, recipe=recipe, runs=1)
    assert facts["epochs"] == 0 and facts["train_loss"] is None and facts["accuracy"] < 0.5


@pytest.mark.slow
def test_two_workers_share_each_batch(finished, tmp_path) -> None:
    config = load(finished)
    facts = train(config, tmp_path, workers=2, runs=2)
    assert facts["workers"] == 2 and 0 < facts["train_loss"] < 3
    models = runs_of(torch.load(tmp_path / "out" / "models.pt", weights_only=True)["models"])
    z, label = embeddings_of(config), columns_of(config)["label"]
    alone = trained(z, label, 3, workers=2)
    told = (model(torch.tensor(z)).detach() for model in (models.run(0), alone))
    torch.testing.assert_close(*told, rtol=5e-3, atol=5e-3)


# ---- labels that are given ---------------------------------------------------------------------


def test_labels_are_those_of_the_shards(finished, caplog) -> None:
    config = load(finished)
    stage, record = signals.finished(config, "pseudo_labels")
    truth = truth_of(config)
    assert record["clustering"] == "given" and record["settings"]["source"] == "cls"
    assert record["classes"] == 10 and record["names"] == [str(i) for i in range(10)]
    found: dict[str, int] = {}
    for part in record["parts"]:
        rows = pq.read_table(f"{stage.folder.path}/part-{part}.parquet")
        assert rows.column_names == ["uid", "label", "confidence", "agreement"]
        assert set(rows["confidence"].to_pylist()) == set(rows["agreement"].to_pylist()) == {1.0}
        found |= dict(zip(rows["uid"].to_pylist(), rows["label"].to_pylist(), strict=True))
    assert found == {uid: int(label) for uid, label in truth.items()}
    counts = np.bincount(list(found.values()), minlength=10).tolist()
    assert record["rows_of_label"] == counts
    assert not (Path(stage.folder.path) / "texts").exists()
    with caplog.at_level(logging.WARNING):
        signals.run(config, ["pseudo_labels"])
    assert "signals.labels=cls READS LABELS OF THE WHOLE POOL" in caplog.text


def csv_of(folder: Path, truth: dict[str, str], config) -> Path:
    """The same labels in words, by key."""
    table, lines = pool_table(config), ["key,label"]
    for part in filled(table.snapshot()):
        for row in read_table(table.parts.part(part), ["uid", "key"]).to_pylist():
            lines.append(f"{row['key']},{'zyxwvutsrq'[int(truth[row['uid']])]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder / "labels.csv"


def test_a_file_gives_the_same_in_the_order_of_its_names(finished, tmp_path) -> None:
    truth = truth_of(load(finished))
    file = csv_of(tmp_path, truth, load(finished))
    config = load(finished, [f"signals.labels={file}", "signals.classes=10"])
    record = signals.run(config, ["pseudo_labels"])["signals"]["pseudo_labels"]
    assert record["names"] == sorted("zyxwvutsrq")
    stage = signals.finished(config, "pseudo_labels")[0]
    for part in record["parts"]:
        rows = pq.read_table(f"{stage.folder.path}/part-{part}.parquet")
        expected = [9 - int(truth[uid]) for uid in rows["uid"].to_pylist()]
        assert rows["label"].to_pylist() == expected
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-2]))  # another file now, and another stage
    with pytest.raises(ValueError, match=r"signals.labels='.*labels.csv': 2 of 180 images have no"):
        signals.run(config, ["pseudo_labels"])
    file.write_text("\n".join([lines[0], *(f"{line.split(',')[0]},one" for line in lines[1:])]))
    with pytest.raises(ValueError, match="names 1 classes: expected 2 to 100,000"):
        signals.run(config, ["pseudo_labels"])
    file.unlink()
    with pytest.raises(ValueError, match=r"signals.labels='.*labels.csv' does not exist"):
        signals.run(config, ["pseudo_labels"])


def test_wrong_labels_are_those_that_a_coreset_has_at_that_seed(finished, caplog) -> None:
    truth, labels = truth_of(load(finished)), {}
    for seed in (0, 1):
        config = load(finished, ["signals.corrupt=0.3", f"signals.seed={seed}"])
        with caplog.at_level(logging.WARNING):
            record = signals.run(config, ["pseudo_labels"])["signals"]["pseudo_labels"]
        assert "signals.corrupt=0.3 of them ARE MADE WRONG" in caplog.text
        stage = signals.finished(config, "pseudo_labels")[0]
        rows = pa.concat_tables(
            pq.read_table(f"{stage.folder.path}/part-{part}.parquet") for part in record["parts"]
        )
        own = np.array([int(truth[uid]) for uid in rows["uid"].to_pylist()])
        images = pa.table({"uid": rows["uid"], "label": own})
        coreset = pa.table({"uid": rows["uid"], "weight": np.ones(len(rows))})
        told = training_rows(coreset, images, "all", Corruption(0.3, 10, seed))
        assert told["uid"].to_pylist() == rows["uid"].to_pylist()
        labels[seed] = rows["label"].to_numpy()
        np.testing.assert_array_equal(labels[seed], told["label"].to_numpy())
        assert 0.15 < (labels[seed] != own).mean() < 0.45
    assert (labels[0] != labels[1]).any()
    assert signals.finished(load(finished), "pseudo_labels")[0].name != stage.name


def test_another_number_of_classes_is_refused(finished) -> None:
    with pytest.raises(ValueError, match=r"signals.classes=7: signals.labels='cls' names 10"):
        signals.run(load(finished, ["signals.classes=7"]), ["pseudo_labels"])


def test_shards_without_labels_are_refused(finished, tmp_path) -> None:
    config = load(finished)
    bare = list_shards([str(without_labels(Path(config.pool.shards[0]), tmp_path / "bare"))])
    table = pool_table(config)
    parts = filled(table.snapshot())
    shards = dict(zip(parts, [table.shards[0], *bare[1:]], strict=True))
    with pytest.raises(ValueError, match=r"signals.labels='cls': 120 of 180 images .*'00001.tar'"):
        write_given_labels(
            table.parts, parts, shards, GivenLabels("cls"), locate(str(tmp_path / "out"))
        )
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_labels_that_are_found_keep_their_place(finished) -> None:
    """Stages of pseudo-labels are named as they were before labels could be given."""
    words = ["signals.labels=pseudo", "signals.pseudo_labels.clustering=kmeans"]
    config = load(finished, [*words, "signals.classes=4"])
    clusters = signals.SIGNALS["clusters"].stage_of(config)[0]
    stage, _, wanted = signals.SIGNALS["pseudo_labels"].stage_of(config)
    assert stage.name.endswith(fingerprint(["kmeans", clusters.name, asdict(wanted)]))
