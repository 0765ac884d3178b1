"""Local patterns: what they are, how a run makes them of shards, and FreeSel, which reads them."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from pools import digits_pool, embed_pixels, tiny_encoder, write_config

from coreset_ray import cli
from coreset_ray.config import load
from coreset_ray.core.pool import Pool
from coreset_ray.core.random import uid_uniform
from coreset_ray.core.whole_set import Given
from coreset_ray.distributed.patterns import PatternWork, _Writer
from coreset_ray.distributed.session import session
from coreset_ray.io.part_images import read_images
from coreset_ray.io.shards import list_shards
from coreset_ray.io.tables import array_of, part_name, read_table
from coreset_ray.models.patterns import Patterns, directions
from coreset_ray.models.preprocess import preprocess_of
from coreset_ray.models.spec import EncoderSpec
from coreset_ray.selectors.freesel import FreeSel
from pipelines import select_coreset, signals
from pipelines.inputs import pool_table

COUNT, EACH = 3, 10


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_local):
    """The configuration of a run to its end that selects by patterns."""
    folder = tmp_path_factory.mktemp("patterns")
    train, _ = digits_pool(folder, shards=2, each=EACH)
    told = {"encoder": tiny_encoder(folder), "count": COUNT}
    select = {"budget": 6, "method": "freesel", "params": {"patterns": COUNT}}
    more = {"compute": {"batch_size": 8, "encoders": 1}, "score": {}}
    path = write_config(folder, train, signals={"patterns": told}, select=select, **more)
    embed_pixels(pool_table(load(path)))
    cli.main(["run", str(path)])
    return path


# The patterns of an image


def tokens_of(b: int, t: int, d: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(b, t, d)).astype(np.float32)
    return values / np.linalg.norm(values, axis=2, keepdims=True)


def slow_directions(tokens: np.ndarray, count: int) -> np.ndarray:
    """Of one image, (t, d), by loops."""
    centers = [tokens[np.argmax(tokens @ tokens.mean(axis=0))]]
    while len(centers) < count:
        centers.append(tokens[np.argmin([max(x @ c for c in centers) for x in tokens])])
    before: list[int] = []
    while True:
        which = [int(np.argmax([x @ c for c in centers])) for x in tokens]
        if which == before:
            return np.stack(centers)
        before = which
        for c in set(which):
            total = np.sum([x for x, w in zip(tokens, which, strict=True) if w == c], axis=0)
            centers[c] = total / np.linalg.norm(total)


@pytest.mark.parametrize(("t", "count"), [(1, 1), (9, 1), (9, 4), (30, 5), (6, 6)])
def test_directions_are_those_of_the_slow_form(t: int, count: int) -> None:
    tokens = tokens_of(7, t, 8, seed=t)
    found = directions(torch.from_numpy(tokens), count).numpy()
    expected = np.stack([slow_directions(image, count) for image in tokens])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_images_directions_are_its_own_alone() -> None:
    tokens = torch.from_numpy(tokens_of(9, 20, 8))
    together = directions(tokens, 4)
    for i in range(9):
        torch.testing.assert_close(directions(tokens[i : i + 1], 4)[0], together[i])


def test_planted_directions_are_found() -> None:
    rng = np.random.default_rng(3)
    planted = np.eye(6, dtype=np.float32)[:4]
    tokens = planted[rng.permutation(np.arange(40) % 4)] + rng.normal(0, 0.02, (40, 6))
    tokens = torch.from_numpy((tokens / np.linalg.norm(tokens, axis=1, keepdims=True))[None])
    found = directions(tokens.float(), 4)[0].numpy()
    assert sorted((found @ planted.T).argmax(axis=1)) == [0, 1, 2, 3]
    assert (found @ planted.T).max(axis=1).min() > 0.999


def test_equal_and_opposite_tokens_have_patterns_of_length_1() -> None:
    one = torch.from_numpy(tokens_of(1, 1, 5))
    for tokens in (one.repeat(1, 8, 1), torch.cat([one, -one], dim=1).repeat(1, 4, 1)):
        for count in (1, 3):
            found = directions(tokens, count)
            torch.testing.assert_close(found.norm(dim=2), torch.ones(1, count))


# The network


def spec(tmp_path: Path, **changes: Any) -> EncoderSpec:
    return EncoderSpec(**tiny_encoder(tmp_path) | changes)


def pixels(n: int, size: int = 160) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def test_tokens_are_those_of_the_block_that_is_named(tmp_path) -> None:
    """Against the network's own last block, normalised, and blocks run by hand."""
    told, images = spec(tmp_path), pixels(3)
    model: Any = timm.create_model("test_vit").eval()
    model.load_state_dict(torch.load(tmp_path / "test_vit.pth", weights_only=True))
    ready = preprocess_of(told).normalise(torch.from_numpy(images))
    with torch.inference_mode():
        x = model.norm_pre(model._pos_embed(model.patch_embed(ready)))
        for number, each in enumerate(model.blocks):
            x = each(x)
            block = {0: 0, 4: -2, 5: 5}.get(number)
            if block is None:
                continue
            tokens = torch.nn.functional.normalize(model.norm(x)[:, 1:], dim=2)
            found = Patterns(told, block=block, count=4)(images)
            np.testing.assert_allclose(found, directions(tokens, 4).numpy(), atol=1e-5)
        np.testing.assert_allclose(model.norm(x), model.forward_features(ready), atol=1e-5)
    assert found.shape == (3, 4, 64) and found.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "how", "message"),
    [
        ({}, {"block": 6}, r"block=6: encoder 'timm:test_vit' has 6 blocks; choose 0 to 5"),
        ({}, {"block": -7}, r"block=-7: "),
        ({}, {"count": 101}, r"count=101: .* 160x160 pixels into 100 patches; set count lower"),
        ({"weights": "/nowhere.pth"}, {}, "nowhere"),
    ],
)
def test_what_yields_no_patterns_is_refused(tmp_path, changes, how, message) -> None:
    with pytest.raises(ValueError, match=message):
        Patterns(spec(tmp_path, **changes), **{"block": 0, "count": 5} | how)


def test_a_network_without_blocks_is_refused(tmp_path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    told = EncoderSpec("timm:test_resnet", weights=str(tmp_path / "resnet.pth"))
    with pytest.raises(ValueError, match=r"'timm:test_resnet': .* name a vision transformer"):
        Patterns(told, block=0, count=2)


# A run


def parts_of(config) -> dict[str, Path]:
    stage, record = signals.finished(config, "patterns")
    return {part: Path(stage.folder.path) / f"part-{part}.parquet" for part in record["parts"]}


def expected_patterns(config, shard: Path) -> np.ndarray:
    """One image at a time, straight from the shard."""
    told = config.signals.patterns
    model = Patterns(told.encoder, block=told.block, count=told.count)
    with tarfile.open(shard) as tar:
        files = [tar.extractfile(m).read() for m in tar if m.name.endswith(".png")]  # type: ignore[union-attr]
    images = [model.prepare(Image.open(io.BytesIO(f)).convert("RGB")) for f in files]
    return np.concatenate([model(image[None]) for image in images])


def test_a_run_writes_the_patterns_of_every_image_and_selects_by_them(finished) -> None:
    config = load(finished)
    _, record = signals.finished(config, "patterns")
    assert record["count"] == COUNT and record["block"] == -2 and record["made_of"] == []
    for shard in list_shards(config.pool.shards):
        part = part_name(shard)
        found = pq.read_table(parts_of(config)[part])
        table = pq.read_table(
            f"{config.workspace}/embeddings/{record['table']}/parts/{part}.parquet"
        )
        assert found["uid"].equals(table["uid"]) and found.column_names == ["uid", "pattern"]
        assert found.schema.field("pattern").type == pa.list_(pa.float16(), COUNT * 64)
        values = array_of(found["pattern"]).astype(np.float32).reshape(EACH, COUNT, 64)
        np.testing.assert_allclose(values, expected_patterns(config, Path(shard.uri)), atol=2e-3)
    manifest = pq.read_table(f"{select_coreset.finished(config)[0].folder.path}/manifest.parquet")
    assert manifest.num_rows == 6
    assert signals.needed_by(config) == ["patterns"]


@pytest.mark.slow
def test_a_lost_part_alone_is_made_again_with_the_same_bits(finished) -> None:
    config = load(finished, ["compute.encoders=2"])
    stage, _ = signals.finished(config, "patterns")
    lost, *others = parts_of(config).values()
    kept, times = lost.read_bytes(), [p.stat().st_mtime_ns for p in others]
    lost.unlink()
    (Path(stage.folder.path) / "done.json").unlink()
    signals.run(config, ["patterns"])
    assert lost.read_bytes() == kept
    assert times == [p.stat().st_mtime_ns for p in others]


def test_an_image_that_changed_is_named(finished, tmp_path) -> None:
    config = load(finished)
    shard = list_shards(config.pool.shards)[0]
    table = pool_table(config).parts
    rows = read_table(table.part(part_name(shard)), ["key", "sha256"])
    key, whole = rows["key"][2].as_py(), Path(shard.uri).read_bytes()
    with tarfile.open(shard.uri) as tar:
        header, start = next((m.offset, m.offset_data) for m in tar if m.name == f"{key}.png")
    moved = replace(shard, uri=str(tmp_path / "shard.tar"))

    def read(data: bytes) -> list[Any]:
        Path(moved.uri).write_bytes(data)
        return list(read_images(moved, rows, 10_000, np.asarray))

    assert len(read(whole)) == EACH
    named = rf"image '{key}' of shard '{shard.name}' is not what was embedded: "
    with pytest.raises(RuntimeError, match=named + "its bytes are others"):
        read(whole[: start + 9] + b"!" + whole[start + 10 :])
    with pytest.raises(RuntimeError, match=named + "its shard no longer holds it"):
        read(whole[:header] + bytes(1024))
    with pytest.raises(RuntimeError, match=named + "ends early"):
        read(whole[:start])
    read(whole)
    with pytest.raises(RuntimeError, match="more than max_pixels = 3"):
        list(read_images(moved, rows, 3, np.asarray))


def test_an_encoder_that_does_not_fit_is_refused_by_its_reason(finished) -> None:
    config = load(finished, ["signals.patterns.count=200"])
    with session(), pytest.raises(ValueError, match=r"^count=200: .* 100 patches"):
        signals.run(config, ["patterns"])


def test_patterns_that_are_no_directions_are_refused(finished, tmp_path) -> None:
    """Of weights that are broken."""
    told = tiny_encoder(tmp_path)
    state = torch.load(told["weights"], weights_only=True)
    state["norm.weight"].fill_(torch.nan)
    torch.save(state, told["weights"])
    config = load(finished)
    shard = list_shards(config.pool.shards)[0]
    work = PatternWork(
        encoder=EncoderSpec(**told),
        block=-2,
        count=COUNT,
        max_pixels=10_000,
        table=pool_table(config).stage.folder.uri,
        out=str(tmp_path),
        device="cpu",
        batch_size=8,
    )
    writer = _Writer.__ray_metadata__.modified_class(work)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"shard '{shard.name}': .* 'timm:test_vit'"):
        writer.write(part_name(shard), shard)
    assert not list(tmp_path.glob("*.parquet"))


def test_patterns_are_made_only_where_they_are_asked_for(finished, monkeypatch) -> None:
    made = []
    for name in signals.SIGNALS:
        stub = type(name, (), {"run": staticmethod(lambda config, n=name: made.append(n) or {})})
        monkeypatch.setitem(signals.SIGNALS, name, stub)
    signals.run(load(finished))
    assert made == [name for name in signals.SIGNALS if name != "patterns"]
    with pytest.raises(SystemExit):
        cli.main(["signals", "--help"])


@pytest.mark.parametrize("name", ["torchvision:resnet18", "open_clip:ViT-L-14/openai"])
def test_encoders_of_other_libraries_are_refused(finished, name: str) -> None:
    with pytest.raises(ValueError, match=r"signals\.patterns: encoder: .* none of timm's"):
        load(finished, [f"signals.patterns.encoder.name={name}"])


# FreeSel


def pool_of_patterns(n: int, count: int, d: int = 4, seed: int = 0) -> Pool:
    uid = np.stack([np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64)], axis=1)
    return Pool(uid, {"patterns.pattern": tokens_of(n, count, d, seed).reshape(n, -1)})


def slow_choice(pool: Pool, count: int, k: int, seed: int, kept: list[int]) -> list[int]:
    """By every distance, the clocks of `core.spherical` set anew each turn."""
    patterns = pool["patterns.pattern"].reshape(len(pool), count, -1).astype(np.float64)
    chosen = list(kept)
    while len(chosen) < len(kept) + k:
        worth = np.zeros(len(pool))
        for i in range(len(pool)):
            for x in patterns[i]:
                near = [((x - y) ** 2).sum() for j in chosen for y in patterns[j]]
                worth[i] += 0 if i in chosen else min(near, default=4.0)
        clock = -np.log1p(-uid_uniform(seed, pool.uid, (1 << 40) + len(chosen)))
        waits = [c / w if w > 0 else np.inf for c, w in zip(clock, worth, strict=True)]
        chosen.append(int(np.argmin(waits)))
    return chosen[len(kept) :]


@pytest.mark.parametrize(("count", "kept"), [(1, []), (3, []), (5, []), (3, [4, 11])])
def test_freesel_is_its_slow_form(count: int, kept: list[int]) -> None:
    pool = pool_of_patterns(30, count)
    for seed in range(3):
        found = FreeSel(count).choose(pool, 8, seed, Given(np.array(kept, np.int64), None))
        assert found.rows.tolist() == slow_choice(pool, count, 8, seed, kept)


def test_freesel_takes_no_image_of_seen_patterns_while_others_are_left() -> None:
    pool = pool_of_patterns(40, 2)
    pattern = pool["patterns.pattern"].copy()
    pattern[10:] = pattern[np.arange(30) % 10]  # ten that differ, four of each
    pool = Pool(pool.uid, {"patterns.pattern": pattern})
    for seed in range(5):
        found = FreeSel(2).choose(pool, 10, seed, Given(np.empty(0, np.int64), None))
        assert len(np.unique(pattern[found.rows], axis=0)) == 10


@pytest.mark.parametrize("count", [1, 2, 3, 6, 12])
def test_freesel_is_told_how_many_patterns_there_are(count: int) -> None:
    """12 numbers of 4 patterns: also those that divide them are refused."""
    pool = pool_of_patterns(9, 4, d=3)
    with pytest.raises(
        ValueError, match=rf"patterns={count}: the 12 numbers .* signals\.patterns\.count"
    ):
        FreeSel(count).choose(pool, 2, 0, Given(np.empty(0, np.int64), None))
