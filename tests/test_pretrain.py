"""An encoder that learns from the pool: losses by slow loops, batches, settings, a real run."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from local_training import split
from PIL import Image
from pools import digits_pool, write_config
from torch import nn

from coreset_ray.config import load
from coreset_ray.distributed.pretrain import pretrain_encoder
from coreset_ray.io.filesystem import locate
from coreset_ray.models.full_batches import FullBatches
from coreset_ray.models.preprocess import preprocess_of
from coreset_ray.models.pretrain import PretrainRecipe, SimclrRecipe, SwavRecipe
from coreset_ray.models.self_supervised import Simclr, Swav, build_self_supervised
from coreset_ray.models.spec import EncoderSpec
from coreset_ray.models.untrained import build_untrained
from pipelines import pretrain

pytest.importorskip("lightly")
ENCODER = {"name": "timm:test_resnet", "weights": "pretrained", "input_size": 32}


# --- losses ----------------------------------------------------------------------------------


def outputs(images, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(images, 2, width))).float()


@pytest.mark.parametrize(("images", "temperature"), [(2, 0.5), (7, 0.1), (16, 1.0)])
def test_the_loss_of_simclr_is_that_of_a_slow_loop(images, temperature):
    model = Simclr(nn.Identity(), 4, SimclrRecipe(hidden=4, width=5, temperature=temperature))
    out = outputs(images, 5)
    z = [v / np.linalg.norm(v) for v in out.double().numpy().reshape(-1, 5)]
    total = 0.0
    for i in range(len(z)):
        other = i ^ 1  # the two views of an image lie side by side
        rest = sum(math.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if k != i)
        total -= math.log(math.exp(z[i] @ z[other] / temperature) / rest)
    assert model.loss(out, 0).item() == pytest.approx(total / len(z), rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_the_loss_of_swav_is_that_of_a_slow_loop(epsilon):
    recipe = SwavRecipe(hidden=4, width=3, prototypes=4, temperature=0.2, epsilon=epsilon)
    out = torch.tanh(outputs(9, 4))  # cosines
    cosine = out.double().numpy()
    b, _, k = cosine.shape

    def assigned(view):
        q = np.exp(cosine[:, view] / epsilon)
        for _ in range(3):
            for p in range(k):
                q[:, p] /= q[:, p].sum() * k
            for i in range(b):
                q[i] /= q[i].sum() * b
        return q * b

    total = 0.0
    for view in (0, 1):
        q = assigned(view)
        np.testing.assert_allclose(q.sum(axis=1), 1)
        for i in range(b):
            logits = cosine[i, 1 - view] / recipe.temperature
            log_p = logits - math.log(sum(math.exp(x) for x in logits))
            total -= sum(q[i, p] * log_p[p] for p in range(k)) / b
    loss = Swav(nn.Identity(), 4, recipe).loss(out, 0)
    assert loss.shape == () and loss.item() == pytest.approx(total / 2, rel=1e-4)


def test_views_of_an_image_stay_side_by_side():
    model = Simclr(nn.Flatten(), 12, SimclrRecipe(hidden=6, width=5)).eval()
    views = torch.randn(4, 2, 3, 2, 2)
    out = model(views)
    assert out.shape == (4, 2, 5)
    for i in range(4):
        for v in range(2):
            one = model.head(model.backbone(views[i, v][None]))[0]
            torch.testing.assert_close(out[i, v], one)


def test_prototypes_are_cosines_and_learn_only_after_the_first_epochs():
    recipe = SwavRecipe(hidden=6, width=5, prototypes=4, frozen_epochs=2)
    model = Swav(nn.Flatten(), 12, recipe)
    (layer,) = model.prototypes.heads
    for epoch in range(4):
        model.zero_grad()
        out = model(torch.randn(8, 2, 3, 2, 2))
        assert out.abs().max() <= 1 + 1e-5
        model.loss(out, epoch).backward()
        assert layer.weight.grad is not None, "workers exchange it"
        assert bool(layer.weight.grad.abs().max() > 0) == (epoch >= 2)
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.head.parameters())
    learning = [p for g in recipe.optimizer(model).param_groups for p in g["params"]]
    assert not any(p is layer.bias for p in learning) and any(p is layer.weight for p in learning)


# --- batches ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(1, 4), st.integers(2, 8), st.integers(0, 60), st.integers(0, 3))
def test_batches_are_full_and_shared_evenly(workers, share, more, epoch):
    size = workers * share
    rows = size + more
    taken = []
    for worker in range(workers):
        batches = FullBatches(rows, size, seed=1, worker=worker, workers=workers)
        batches.set_epoch(epoch)
        own = list(batches)
        assert len(own) == len(batches) == rows // size and batches.sizes == [size] * len(own)
        assert all(len(batch) == share for batch in own)
        mine = [row for batch in own for row, _ in batch]
        assert all(row % workers == worker and 0 <= row < rows for row in mine)
        taken += mine
    assert len(taken) == len(set(taken)) == rows // size * size


def test_epochs_differ_and_come_again():
    batches = FullBatches(50, 8, seed=3)
    found = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        found.append(list(batches))
    assert found[0] == found[2] != found[1]
    left_out = set(range(50))
    for epoch in range(40):
        batches.set_epoch(epoch)
        left_out &= set(range(50)) - {row for batch in batches for row, _ in batch}
    assert not left_out, "no image is left out for ever"


@pytest.mark.parametrize(
    ("rows", "size", "workers", "said"),
    [(50, 9, 2, "a multiple"), (7, 8, 1, "of 7 images"), (50, 2, 2, "two images a worker")],
)
def test_batches_that_cannot_be_are_refused(rows, size, workers, said):
    with pytest.raises(ValueError, match=said):
        FullBatches(rows, size, seed=0, workers=workers)


# --- recipes and networks --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((PretrainRecipe, {name: 0}) for name in ("epochs", "hidden", "width", "lr", "crop")),
        (PretrainRecipe, {"batch_size": 1}),
        (PretrainRecipe, {"warmup_epochs": -1}),
        (PretrainRecipe, {"lr": math.inf}),
        (PretrainRecipe, {"weight_decay": -0.1}),
        (PretrainRecipe, {"gray": 1.1}),
        (PretrainRecipe, {"precision": "half"}),
        (SimclrRecipe, {"temperature": 0}),
        (SwavRecipe, {"epsilon": 0}),
        (SwavRecipe, {"frozen_epochs": -1}),
        (SwavRecipe, {"prototypes": 1}),
        (SwavRecipe, {"prototypes": 32, "batch_size": 32}),
    ],
)
def test_values_out_of_range_are_refused_by_name(kind, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        kind(**change)


def test_the_rate_rises_in_a_line_and_falls_by_a_cosine():
    recipe = PretrainRecipe(epochs=10, warmup_epochs=2, lr=0.5)
    rates = [recipe.learning_rate(step, 50) for step in range(50)]
    np.testing.assert_allclose(rates[:10], [0.05 * (step + 1) for step in range(10)])
    slow = [0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(40)]
    np.testing.assert_allclose(rates[10:], slow, atol=1e-9)


def test_two_views_are_drawn_from_torchs_generator():
    prepare = preprocess_of(EncoderSpec(**{**ENCODER, "weights": None}))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    views = SimclrRecipe().views(prepare)
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        found.append(views(Image.fromarray(pixels)))
    assert found[0].shape == (2, 3, 32, 32) and found[0].dtype == torch.float32
    assert not torch.equal(found[0][0], found[0][1])
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:resnet18"])
def test_an_untrained_network_is_a_function_of_the_seed_and_has_seen_nothing(name):
    spec = EncoderSpec(name=name, input_size=32)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(build_untrained(spec))
    states = [model.state_dict() for model, _ in found]
    weight = next(k for k, v in states[0].items() if v.ndim == 4)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0][weight], states[2][weight])
    assert all(v.item() == 0 for k, v in states[0].items() if k.endswith("num_batches_tracked"))
    model, width = found[0]
    assert model.training and model(torch.zeros(2, 3, 32, 32)).shape == (2, width)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("open_clip:ViT-B-32/openai", None, "captions"),
        ("torchvision:googlenet", None, "auxiliary"),
        ("timm:test_vit", 96, "pixels alone"),
    ],
)
def test_networks_that_cannot_learn_so_are_refused(name, size, said):
    with pytest.raises(ValueError, match=said):
        build_untrained(EncoderSpec(name=name, input_size=size))


def test_the_recipe_says_which_method_it_is():
    spec = EncoderSpec(name="timm:test_resnet", input_size=32)
    for recipe, kind in [(SimclrRecipe(hidden=8), Simclr), (SwavRecipe(hidden=8), Swav)]:
        assert type(build_self_supervised(spec, recipe)) is kind


# --- configuration ---------------------------------------------------------------------------


def configuration(folder, **changes):
    data = {
        "workspace": str(folder / "work"),
        "pool": {"shards": ["a.tar"]},
        "embed": {"encoders": [ENCODER]},
        "pretrain": {},
        "select": {"budget": 0.1},
        **changes,
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pretrain": None}, "say how it is trained"),
        ({"embed": {"encoders": ["timm:test_resnet"]}}, "no encoder under embed.encoders"),
        ({"embed": {"encoders": [ENCODER, {**ENCODER, "input_size": 64}]}}, "one at most"),
        ({"pretrain": {"method": "byol"}}, "method"),
        ({"pretrain": {"params": {"epoch": 3}}}, "epoch"),
        ({"pretrain": {"method": "simclr", "params": {"prototypes": 8}}}, "prototypes"),
        ({"pretrain": {"method": "swav", "params": {"batch_size": 64}}}, "prototypes=128"),
        ({"signals": {"patterns": {"encoder": {**ENCODER}}}}, "alone"),
    ],
)
def test_sections_that_disagree_are_refused(tmp_path, changes, said):
    assert configuration(tmp_path).pretrain.recipe() == SimclrRecipe()
    with pytest.raises(ValueError, match=said):
        configuration(tmp_path, **changes)


@pytest.mark.parametrize(
    ("rows", "change", "said"),
    [
        (0, {}, "no image"),
        (8, {}, "of 8 images"),
        (64, {"workers": 3}, "multiple"),
        (64, {"seed": -1}, "seed"),
    ],
)
def test_wrong_arguments_are_refused_before_ray_is_touched(
    tmp_path, monkeypatch, rows, change, said
):
    def touched(*_):
        raise AssertionError("Ray")

    monkeypatch.setattr("ray.put", touched)
    zeros = np.zeros(rows, np.int64)
    images = pa.table({"path": pa.array(["x"] * rows, pa.string()), "offset": zeros, "size": zeros})
    told = {"seed": 0, "max_pixels": 100, "scratch": "s", "storage_path": "p", "name": "n"}
    running, told = split({**told, **change})
    with pytest.raises(ValueError, match=said):
        pretrain_encoder(
            *(images, EncoderSpec(name="timm:test_resnet"), SimclrRecipe(batch_size=16)),
            locate(str(tmp_path / "w.safetensors")),
            **told,
            running=running,
        )


# --- a run -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_trains_and_embeds_and_reads_no_label(ray_local, tmp_path, monkeypatch):
    """With labels and without them the same weights, bit for bit."""
    from pathlib import Path

    from pools import without_labels

    from coreset_ray.io.tables import matrix, read_table
    from pipelines import embed
    from pipelines.inputs import filled, pool_table, pretrain_stage

    train, _ = digits_pool(tmp_path, shards=2, each=40)
    bare = without_labels(train, tmp_path / "bare")
    found = []
    for name, pool in (("labeled", train), ("bare", bare)):
        folder = tmp_path / name
        folder.mkdir()
        path = write_config(
            *(folder, pool),
            embed={"encoders": [ENCODER]},
            pretrain={"params": {"epochs": 2, "batch_size": 16, "hidden": 16, "width": 8}},
        )
        config = load(path)
        record = pretrain.run(config)
        assert record["images"] == 80 and len(record["losses"]) == 2
        assert np.isfinite(record["losses"]).all()
        weights = Path(pretrain_stage(config).folder.path, "weights.safetensors").read_bytes()
        assert pretrain.run(config) == record, "it is trained once"
        snapshot = embed.run(config)
        assert snapshot["rows"] == 80
        table = pool_table(config).parts
        rows = np.concatenate(
            [
                matrix(read_table(table.part(p), ["embedding"])["embedding"])
                for p in filled(snapshot)
            ]
        )
        assert np.isfinite(rows).all() and rows.std(axis=0).max() > 0
        found.append(weights)
    assert found[0] == found[1]
