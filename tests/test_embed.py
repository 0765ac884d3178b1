"""The embed stage on a real Ray: what it writes, what it skips, and what bad input does to it."""

import hashlib
import io
import os
import shutil
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from coreset_ray.config import load
from coreset_ray.io.images import decode
from coreset_ray.io.tables import matrix, read_table, uid_of
from coreset_ray.models.encoders import Encoder, preprocess_of
from pipelines import embed
from pipelines.inputs import filled, pool_table

PER_SHARD, SHARDS = 12, 6
VIT, CNN = "timm:test_vit", "timm:test_resnet"


# --- pools and configurations ----------------------------------------------------------------


def png(number):
    pixels = (load_digits().images[number] * 15.9).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((40, 24 + number % 9)).save(buffer, "PNG")
    return buffer.getvalue()


def samples(start, count=PER_SHARD):
    return [(f"digits/{n:05d}.png", png(n)) for n in range(start, start + count)]


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def save_weights(path, model, change=lambda state: None):
    torch.manual_seed(0)
    state = timm.create_model(model.partition(":")[2]).state_dict()
    change(state)
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {name: save_weights(folder / f"{name[5:]}.pth", name) for name in (VIT, CNN)}


def encoder(name, file):
    return {"name": name, "weights": file, "input_size": 32}


def configure(folder, pool, encoders, overrides=(), **embedding):
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "workspace": str(folder / "workspace"),
        "pool": {"shards": [str(pool)]},
        "embed": {"encoders": encoders, **embedding},
        "select": {"budget": 5},
        "compute": {"device": "cpu", "encoders": 1, "batch_size": 5},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(data))
    return load(folder / "run.yaml", list(overrides))


def tables(config):
    """(commit, rows or None, quarantine as (key, reason) pairs) by shard name."""
    table = pool_table(config)
    answer = {}
    for name, commit in table.parts.committed(table.shards).items():
        rows = read_table(table.parts.part(commit.part)) if commit.rows else None
        place = table.parts.quarantine(commit.part)
        bad = read_table(place).to_pylist() if place.exists() else []
        assert all(row["shard"] == name for row in bad) and len(bad) == commit.quarantined
        answer[name] = SimpleNamespace(
            commit=commit, rows=rows, bad=[(row["key"], row["reason"]) for row in bad]
        )
    return answer


def records(config):
    """Every file of the table with its time and content: what a second run must not touch."""
    folder = pool_table(config).stage.folder.path
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            found[os.path.relpath(path, folder)] = (os.stat(path).st_mtime_ns, digest)
    return found


def contents(config):
    return {name: shard.commit.content for name, shard in tables(config).items()}


def by_hand(specs, images):
    """The oracle: one image after another, without Ray, tables or batches."""
    torch.set_num_threads(1)  # the machine may be busy
    encode = Encoder(specs)
    decoded = [decode(data, 10**6) for data in images]
    return np.concatenate(
        [encode([preprocess_of(s)(image)[None] for s in specs]) for image in decoded]
    )


@pytest.fixture
def no_ray(monkeypatch):
    """Whoever asks for Ray now fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("there is nothing to do: Ray is not needed")

    monkeypatch.setattr(embed, "on_cluster", refuse)
    monkeypatch.setattr(embed, "_embed_missing", refuse)


@pytest.fixture(scope="module")
def good(ray_local, tmp_path_factory, weights):
    """A pool without faults, embedded once: two networks side by side, in two actors."""
    folder = tmp_path_factory.mktemp("good")
    for i in range(SHARDS):
        write_shard(folder / f"pool/{i:05d}.tar", samples(i * PER_SHARD))
    encoders = [encoder(CNN, weights[CNN]), encoder(VIT, weights[VIT])]
    config = configure(folder, folder / "pool", encoders, ["compute.encoders=2"])
    snapshot = embed.run(config)
    return SimpleNamespace(folder=folder, config=config, snapshot=snapshot, encoders=encoders)


# --- a good pool -----------------------------------------------------------------------------


def test_embeddings_are_those_of_a_plain_loop(good):
    assert (good.snapshot["rows"], good.snapshot["quarantined"]) == (SHARDS * PER_SHARD, 0)
    specs = good.config.embed.encoders
    for number, (name, shard) in enumerate(sorted(tables(good.config).items())):
        members = samples(number * PER_SHARD)
        rows = shard.rows
        keys = [member.removesuffix(".png") for member, _ in members]
        assert rows["key"].to_pylist() == keys, "in the order of the shard"
        assert set(rows["shard"].to_pylist()) == {name}
        assert rows["uid"].to_pylist() == [uid_of(name, key) for key in keys]
        hashes = [hashlib.sha256(data).hexdigest() for _, data in members]
        assert rows["sha256"].to_pylist() == hashes
        sizes = [Image.open(io.BytesIO(data)).size for _, data in members]
        assert (
            list(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)) == sizes
        )
        if number in (0, SHARDS - 1):
            expected = by_hand(specs, [data for _, data in members])
            np.testing.assert_allclose(matrix(rows["embedding"]), expected, rtol=1e-4, atol=1e-5)
            assert np.linalg.norm(expected, axis=1).min() > 0.1
        assert shard.commit.precision == "float32"


def test_encoders_stand_side_by_side_in_their_order(good):
    rows = tables(good.config)["00000.tar"].rows
    assert rows["embedding"].type == pa.list_(pa.float32(), 96 + 64)
    images = [data for _, data in samples(0)]
    alone = [by_hand([spec], images) for spec in good.config.embed.encoders]
    together = matrix(rows["embedding"])
    np.testing.assert_allclose(together[:, :96], alone[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[:, 96:], alone[1], rtol=1e-4, atol=1e-5)


def test_a_second_run_does_nothing_and_needs_no_ray(good, no_ray):
    before = records(good.config)
    assert embed.run(good.config) == good.snapshot
    assert records(good.config) == before


def test_speed_settings_do_not_name_another_table(good, no_ray):
    faster = load(good.folder / "run.yaml", ["compute.encoders=5", "compute.batch_size=64"])
    assert embed.run(faster) == good.snapshot


def test_the_answer_does_not_depend_on_the_number_of_actors_nor_on_the_entries(good, tmp_path):
    # Actors of one thread each: the number of threads may change the last bit of a convolution.
    three = configure(tmp_path, good.folder / "pool", good.encoders, ["compute.encoders=3"])
    pool = three.pool.model_copy(
        update={"shards": tuple(f"{good.folder}/pool/{i:05d}.tar" for i in (4, 1, 0, 5, 3, 2))}
    )
    snapshot = embed.run(three.model_copy(update={"pool": pool}))
    assert contents(three) == contents(good.config)
    assert len(set(contents(three).values())) == SHARDS
    assert snapshot == good.snapshot


def test_new_and_changed_shards_are_embedded_and_nothing_else(good, tmp_path):
    shutil.copytree(good.folder, tmp_path, dirs_exist_ok=True)  # times are copied too
    config = configure(tmp_path, tmp_path / "pool", good.encoders)
    before = records(config)
    assert len(before) == 2 * SHARDS + 1

    write_shard(tmp_path / "pool/00001.tar", samples(500, 5))
    write_shard(tmp_path / "pool/more/7.tar", samples(600, 3))
    snapshot = embed.run(config)
    after = records(config)
    assert {name: after[name] for name in before} == before, "the old parts stay as they were"
    assert sorted(name.partition("-")[0] for name in set(after) - set(before)) == [
        *("parts/00001", "parts/00001", "parts/more_7", "parts/more_7")
    ]
    rows = {part["shard"]: part["rows"] for part in snapshot["parts"]}
    assert rows == {f"{i:05d}.tar": PER_SHARD for i in range(SHARDS)} | {
        **{"00001.tar": 5, "more/7.tar": 3}
    }
    expected = by_hand(config.embed.encoders, [data for _, data in samples(500, 5)])
    found = matrix(tables(config)["00001.tar"].rows["embedding"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# --- a bad pool ------------------------------------------------------------------------------


def bad_pool(pool):
    good = samples(0, 10)
    spoilt = dict(good)
    spoilt["digits/00002.png"] = b""
    spoilt["digits/00005.png"] = b"<html>404</html>"
    spoilt["digits/00007.png"] = spoilt["digits/00007.png"][:60]
    write_shard(pool / "bad-images.tar", list(spoilt.items()))
    write_shard(pool / "captions.tar", [(f"{i}.txt", b"a caption") for i in range(3)])
    write_shard(pool / "cut.tar", good)
    whole = (pool / "cut.tar").read_bytes()
    with tarfile.open(pool / "cut.tar") as tar:
        inside = tar.getmember("digits/00006.png").offset_data + 20
    (pool / "cut.tar").write_bytes(whole[:inside])
    (pool / "garbage.tar").write_bytes(b"this is no tar file\n" * 200)
    write_shard(pool / "twice.tar", [*samples(20, 3), *samples(20, 1), *samples(23, 1)])
    write_shard(pool / "vanished.tar", good)
    write_shard(pool / "whole.tar", good)


@pytest.fixture(scope="module")
def bad(ray_local, tmp_path_factory, weights):
    """A pool with every fault, embedded once in half precision; what that run said."""
    folder = tmp_path_factory.mktemp("bad")
    bad_pool(folder / "pool")
    encoders = [encoder(VIT, weights[VIT])]
    config = configure(folder, folder / "pool", encoders, max_bad=0.01, dtype="float16")
    table = pool_table(config)
    assert len(table.shards) == 7
    (folder / "pool/vanished.tar").unlink()  # after it was listed
    with pytest.raises(RuntimeError) as unreadable:
        embed.embed(config, table)
    after = records(config)
    committed = sorted(table.parts.committed(table.shards))
    return SimpleNamespace(
        config=config, unreadable=str(unreadable.value), after=after, committed=committed
    )


def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_committed(bad):
    assert "1 of 7 shards could not be read" in bad.unreadable
    assert "vanished.tar" in bad.unreadable and "whole.tar" not in bad.unreadable
    assert bad.committed == [
        *("bad-images.tar", "captions.tar", "cut.tar", "garbage.tar", "twice.tar", "whole.tar")
    ]


def test_too_many_bad_images_fail_with_counts_and_place(bad, no_ray):
    with pytest.raises(RuntimeError, match=r"embed\.max_bad = 0\.01") as error:
        embed.run(bad.config)
    folder = pool_table(bad.config).stage.folder.path
    assert "9 of 36 images and 1 of 6 shards are unusable" in str(error.value)
    assert f"{folder}/quarantine" in str(error.value)
    assert records(bad.config) == bad.after, "all parts stay"


def test_raising_max_bad_goes_on_without_redoing(bad, no_ray, caplog):
    config = bad.config.replace("embed", max_bad=0.4)
    with caplog.at_level("WARNING"):
        snapshot = embed.run(config)
    assert (snapshot["rows"], snapshot["quarantined"]) == (27, 9)
    assert records(config) == bad.after
    named = [r.getMessage() for r in caplog.records if r.name == "pipelines.embed"]
    assert ["cut.tar" in named[0], "garbage.tar" in named[1], "twice.tar" in named[2]] == [True] * 3
    assert filled(snapshot) and len(filled(snapshot)) == 4


def test_bad_images_are_set_aside_with_their_reasons(bad):
    shard = tables(bad.config)["bad-images.tar"]
    keys = [f"digits/{i:05d}" for i in range(10) if i not in (2, 5, 7)]
    assert shard.rows["key"].to_pylist() == keys
    assert [key for key, _ in shard.bad] == ["digits/00002", "digits/00005", "digits/00007"]
    reasons = [reason for _, reason in shard.bad]
    assert reasons[0] == "zero bytes" and "known format" in reasons[1] and reasons[2]
    expected = by_hand(
        bad.config.embed.encoders, [d for k, d in samples(0, 10) if k.removesuffix(".png") in keys]
    )
    assert shard.rows["embedding"].type == pa.list_(pa.float16(), 64)
    assert not np.array_equal(expected, expected.astype("f2")), "or the type would not matter"
    np.testing.assert_allclose(matrix(shard.rows["embedding"]), expected, rtol=2e-3, atol=2e-3)


def test_a_cut_shard_keeps_its_whole_samples(bad):
    shard, whole = tables(bad.config)["cut.tar"], tables(bad.config)["whole.tar"]
    kept = shard.rows["key"].to_pylist()
    assert kept == [f"digits/{i:05d}" for i in range(6)]
    assert "ends early" in shard.commit.fault
    assert shard.bad == [("", shard.commit.fault)]
    same = matrix(shard.rows["embedding"]), matrix(whole.rows["embedding"])[:6]
    np.testing.assert_allclose(*same, rtol=2e-3, atol=2e-3)
    assert whole.bad == [] and whole.commit.fault == ""


def test_a_shard_that_is_no_tar_file(bad):
    shard = tables(bad.config)["garbage.tar"]
    assert shard.commit.rows == 0 and "not a whole tar file" in shard.commit.fault
    assert shard.bad == [("", shard.commit.fault)] and shard.commit.content == ""


def test_a_key_that_comes_twice_means_its_first_image(bad):
    shard = tables(bad.config)["twice.tar"]
    assert shard.rows["key"].to_pylist() == [f"digits/{i:05d}" for i in range(20, 24)]
    assert shard.bad == [("digits/00020", "this key was seen before in the shard")]


def test_a_shard_without_images(bad):
    shard = tables(bad.config)["captions.tar"]
    assert shard.commit.rows == 0 and shard.commit.fault == ""
    assert shard.bad == [(str(i), "the sample has no image") for i in range(3)]


# --- bad encoders ----------------------------------------------------------------------------


def test_embeddings_that_are_no_numbers_are_set_aside(ray_local, tmp_path):
    def spoil(state):
        state["norm.bias"][3] = float("nan")

    file = save_weights(tmp_path / "nan.pth", VIT, spoil)
    write_shard(tmp_path / "pool/0.tar", samples(0, 6))
    config = configure(tmp_path, tmp_path / "pool", [encoder(VIT, file)], max_bad=1.0)
    snapshot = embed.run(config)
    assert (snapshot["rows"], snapshot["quarantined"]) == (0, 6)
    shard = tables(config)["0.tar"]
    assert shard.bad == [
        (f"digits/{i:05d}", "its embedding holds NaN or infinity") for i in range(6)
    ]
    with pytest.raises(ValueError, match="no usable image"):
        filled(snapshot)


@pytest.mark.parametrize("missing", ["weights", "model"])
def test_an_encoder_that_cannot_be_had_is_named_at_once(tmp_path, no_ray, missing):
    write_shard(tmp_path / "pool/0.tar", samples(0, 2))
    name = VIT if missing == "weights" else "timm:test_vitt"
    config = configure(tmp_path, tmp_path / "pool", [encoder(name, str(tmp_path / "gone.pth"))])
    with pytest.raises(ValueError, match=name) as error:
        embed.run(config)
    assert missing in str(error.value) and not type(error.value).__module__.startswith("ray")
    assert not (tmp_path / "workspace").exists()


@pytest.mark.slow
def test_weights_of_another_network_are_named(ray_local, tmp_path, weights):
    write_shard(tmp_path / "pool/0.tar", samples(0, 2))
    config = configure(tmp_path, tmp_path / "pool", [encoder(VIT, weights[CNN])])
    with pytest.raises(ValueError, match="does not fit the model") as error:
        embed.run(config)
    assert weights[CNN] in str(error.value) and "Traceback" not in str(error.value)
    assert tables(config) == {}
