"""A pool that looks like the web: as planned, as its truth says, and the same every time."""

import dataclasses
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat
from test_sources import by_webdataset, everything, png, put, refused

from coreset_ray.cli import main
from coreset_ray.io.degrade import Degrade
from coreset_ray.io.degrade_image import CHANGES, changed, draw_changes
from coreset_ray.io.degrade_plan import TOPIC, group_sizes, long_tail, plan_pool
from coreset_ray.io.sources import digits_samples, make_shards

WEB = Degrade(size=1200, factor=6, off_topic=0.1, blank=0.02, noise=0.03)
WORTHLESS = ("off_topic", "blank", "noise")


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Something smooth, so that a copy resembles it and no other."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def truth_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "truth.parquet").to_pylist()


def opened(members: dict[str, bytes]) -> Image.Image:
    name = next(e for e in members if e in ("png", "jpg"))
    image = Image.open(io.BytesIO(members[name]))
    assert image.format == {"png": "PNG", "jpg": "JPEG"}[name]
    image.load()
    return image


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of another source, with classes and captions of their own."""
    root = tmp_path_factory.mktemp("strangers")
    for i in range(30):
        put(root / f"{'xy'[i % 2]}/{i}.jpg", encoded(picture(i), "JPEG"))
        put(root / f"{'xy'[i % 2]}/{i}.txt", b"caption %d" % i)
    return root


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, strangers: Path) -> tuple[Path, dict[str, Any]]:
    """Digits, degraded with a share of everything."""
    out = tmp_path_factory.mktemp("web") / "pool"
    return out, make_shards("digits", out, per_shard=500, degrade=WEB, off_topic=str(strangers))


# --- the pool ----------------------------------------------------------------------------------


def test_the_shares_and_groups_are_those_asked_for(web):
    out, report = web
    rows = truth_of(out)
    assert report["splits"]["train"] == {"samples": 1200, "shards": 3} and len(rows) == 1200
    kinds = Counter(row["kind"] for row in rows)
    assert report["degraded"] == kinds
    assert [kinds[k] for k in (*WORTHLESS, "original")] == [120, 24, 36, 200]
    for topic, sizes in ((True, group_sizes(200, 1020, 1.0)), (False, group_sizes(20, 120, 1.0))):
        groups = Counter(
            r["origin"] for r in rows if r["origin"] and topic == (r["label"] is not None)
        )
        assert sorted(groups.values(), reverse=True) == sizes.tolist()
    copies = Counter(row["change"] or "none" for row in rows if row["kind"] not in WORTHLESS)
    changes = [c for c in copies if c not in ("none", "copy")]
    assert all(set(c.split("+")) <= set(CHANGES) and c.count("+") <= 1 for c in changes)
    changed_twice = sum(copies[c] for c in changes if "+" in c)
    assert 50 < copies["copy"] < 120 and 0.2 < changed_twice / sum(copies[c] for c in changes) < 0.4


def test_the_truth_names_every_place_and_the_label_of_its_original(web):
    out, _ = web
    rows, samples = truth_of(out), by_webdataset(out / "train")
    originals = {s.key: s.members for s in digits_samples("train")}
    assert [(r["shard"], r["key"]) for r in rows] == [
        (f"{i // 500:05d}.tar", f"{i:08d}") for i in range(1200)
    ]
    for row in rows:
        members = samples[row["key"]]
        if row["kind"] in WORTHLESS:
            assert row["label"] is None and "cls" not in members
            assert (row["origin"] is None) == (row["kind"] != "off_topic")
            continue
        original = originals[row["origin"]]
        assert row["label"] == members["cls"].decode() == original["cls"].decode()
        assert row["kind"] == (row["change"] or "original")
        assert (members == original) == (row["kind"] in ("original", "copy"))


def test_off_topic_images_keep_sidecars_but_no_class(web, strangers):
    out, _ = web
    samples = by_webdataset(out / "train")
    rows = [row for row in truth_of(out) if row["kind"] == "off_topic"]
    assert len({row["origin"] for row in rows}) == 20
    for row in rows:
        members = samples[row["key"]]
        assert members["txt"] == b"caption %d" % int(row["origin"].split("/")[1])
        if row["change"] in (None, "copy"):
            assert members["jpg"] == (strangers / f"{row['origin']}.jpg").read_bytes()


def test_blank_and_noise_are_what_they_are_called(web):
    out, _ = web
    samples = by_webdataset(out / "train")
    for row in truth_of(out):
        if row["kind"] not in ("blank", "noise"):
            continue
        image = opened(samples[row["key"]])
        spread = ImageStat.Stat(image).stddev
        assert image.size == (8, 8)
        assert max(spread) < 1 if row["kind"] == "blank" else min(spread) > 20


def test_the_same_settings_give_the_same_bytes_and_leave_the_test_split(web, strangers, tmp_path):
    out, _ = web
    make_shards("digits", tmp_path / "a", per_shard=500, degrade=WEB, off_topic=str(strangers))
    assert everything(tmp_path / "a") == everything(out)
    make_shards("digits", tmp_path / "clean", per_shard=500)
    assert everything(tmp_path / "clean/test") == everything(out / "test")
    other = dataclasses.replace(WEB, seed=1)
    make_shards("digits", tmp_path / "b", per_shard=500, degrade=other, off_topic=str(strangers))
    assert everything(tmp_path / "b/test") == everything(out / "test")
    assert everything(tmp_path / "b/train") != everything(out / "train")


def test_a_copy_does_not_depend_on_its_place(web, strangers, tmp_path):
    def images(out: Path) -> list[tuple]:
        samples = by_webdataset(out / "train")
        rows = [
            tuple((k, v) for k, v in r.items() if k not in ("shard", "key")) for r in truth_of(out)
        ]
        return [(r, samples[f"{i:08d}"]) for i, r in enumerate(rows)]

    make_shards("digits", tmp_path, degrade=WEB, off_topic=str(strangers), shuffle=False)
    plain, mixed = images(tmp_path), images(web[0])
    assert plain != mixed and sorted(plain, key=repr) == sorted(mixed, key=repr)
    assert plain[0][0][1] == ("kind", "original") and plain[1][0][0] == plain[0][0][0]


def test_shards_degrade_and_a_copy_of_another_format_replaces_its_image(tmp_path):
    for i in range(20):
        put(tmp_path / f"in/c/{i}.webp", encoded(picture(i), "WEBP"))
        put(tmp_path / f"in/c/{i}.json", b"[%d]" % i)
    make_shards(str(tmp_path / "in"), tmp_path / "a")
    make_shards(str(tmp_path / "a"), tmp_path / "b", degrade=Degrade(exact=0, blank=0, noise=0))
    samples = by_webdataset(tmp_path / "b")
    for row in truth_of(tmp_path / "b"):
        names = (
            {"webp"} if row["kind"] == "original" else {"jpg" if "jpeg" in row["kind"] else "png"}
        )
        members = samples[row["key"]]
        assert set(members) == names | {"json", "cls"}
        assert members["json"] == b"[%s]" % row["origin"].split("/")[1].encode()


# --- the plan ----------------------------------------------------------------------------------


@settings(deadline=None, database=None, max_examples=60)
@given(st.integers(1, 60), st.integers(0, 400), st.floats(0, 4))
def test_group_sizes_add_up_and_follow_the_law(groups, copies, exponent):
    sizes = group_sizes(groups, groups + copies, exponent)
    law = [rank**-exponent for rank in range(1, groups + 1)]
    assert sizes.sum() == groups + copies and sizes.min() >= 1
    assert (np.diff(sizes) <= 0).all()
    for size, weight in zip(sizes, law, strict=True):
        assert abs(size - 1 - copies * weight / sum(law)) < 1 + 1e-9


def test_the_largest_group_of_a_large_pool_is_thousands():
    plan = plan_pool(Degrade(size=50_000), 50_000)
    sizes = np.bincount(plan.origin[plan.what == TOPIC], minlength=50_000)
    assert plan.distinct == (sizes > 0).sum() == 5000 and 4000 < sizes.max() < 6000
    assert len(set(zip(plan.what, plan.origin, plan.copy, strict=True))) == 50_000


@settings(deadline=None, database=None, max_examples=60)
@given(
    st.lists(st.sampled_from("0123"), min_size=1, max_size=80),
    st.floats(1, 100),
    st.integers(0, 3),
)
def test_the_long_tail_is_exponential_and_every_beginning_has_its_shape(labels, ratio, seed):
    kept = long_tail(labels, ratio, np.random.default_rng(seed))
    have, names = Counter(labels), sorted(set(labels))
    wish = [max(have.values()) * ratio ** (-i / max(1, len(names) - 1)) for i in range(len(names))]
    count = Counter(labels[i] for i in kept)
    assert len(set(kept.tolist())) == len(kept)
    for name, number in zip(names, wish, strict=True):
        assert count[name] == min(have[name], max(1, round(number)))
    for stop in range(len(names), len(kept) + 1):
        part = Counter(labels[i] for i in kept[:stop])
        assert len(part) == len(names)
        shares = [part[name] / count[name] for name in names]
        steps = [1 / count[name] for name in names]
        assert max(shares) - min(shares) <= max(steps) + 1e-9


def test_a_long_tail_in_the_pool(tmp_path):
    make_shards("digits", tmp_path, degrade=Degrade(factor=1.1, long_tail=20))
    count = Counter(r["label"] for r in truth_of(tmp_path) if r["kind"] == "original")
    numbers = [count[str(digit)] for digit in range(10)]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > 100
    assert 15 < numbers[0] / numbers[9] < 25


# --- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_each_change_is_within_its_bounds_and_still_the_image(change, extension):
    image = picture(1, (120, 90))
    outcomes = []
    for seed in range(20):
        name, data = changed(image, extension, (change,), np.random.default_rng(seed))
        assert name == ("jpg" if change == "jpeg" else extension)
        found = opened({name: data})
        outcomes.append(found.size)
        area = math.prod(found.size) / math.prod(image.size)
        if change == "crop":
            assert 0.58 < area < 0.97
        elif change == "resize":
            assert 0.15 < area < 0.82
            assert abs(found.width / found.height - 4 / 3) < 0.05
        else:
            assert found.size == image.size and data != encoded(image, found.format or "")
        if change != "crop":
            near, far = (
                sum(ImageStat.Stat(ImageChops.difference(found, other.resize(found.size))).mean)
                for other in (image, picture(2, (120, 90)))
            )
            assert near < 0.7 * far
    assert len(set(outcomes)) > 10 or change in ("color", "jpeg")


def test_a_crop_is_a_part_of_the_image():
    values = np.arange(30 * 40, dtype=np.uint32).reshape(30, 40)
    pixels = np.stack([values % 256, values // 256, values * 0], axis=2).astype(np.uint8)
    for seed in range(20):
        image = Image.fromarray(pixels)
        part = np.asarray(
            opened(dict([changed(image, "png", ("crop",), np.random.default_rng(seed))]))
        )
        first = int(part[0, 0, 0]) + 256 * int(part[0, 0, 1])
        top, left = divmod(first, 40)
        height, width = part.shape[:2]
        np.testing.assert_array_equal(part, pixels[top : top + height, left : left + width])


def test_an_image_of_one_pixel_survives_every_change():
    for seed, change in enumerate((*CHANGES, CHANGES)):
        changes = (change,) if isinstance(change, str) else change
        name, data = changed(Image.new("RGB", (1, 1)), "png", changes, np.random.default_rng(seed))
        assert opened({name: data}).size == (1, 1)


def test_changes_are_drawn_as_often_as_asked():
    rng = np.random.default_rng(0)
    assert {draw_changes(rng, 1, 1) for _ in range(20)} == {()}
    assert Counter(len(draw_changes(rng, 0, 0)) for _ in range(50)) == {1: 50}
    drawn = Counter(draw_changes(rng, 0, 1) for _ in range(600))
    assert len(drawn) == 6 and min(drawn.values()) > 60
    assert all(list(pair) == [c for c in CHANGES if c in pair] for pair in drawn)


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"factor": 0.5}, "factor=0.5: choose from 1"),
        ({"factor": math.inf}, "factor=inf: choose"),
        ({"exponent": -1}, "exponent=-1: choose from 0"),
        ({"exact": 1.5}, r"exact=1\.5: choose from 0 to 1"),
        ({"composed": math.nan}, "composed=nan: choose"),
        ({"long_tail": 0}, "long_tail=0: choose from 1"),
        ({"blank": -0.1}, r"blank=-0\.1: choose from 0 to 1"),
        ({"blank": 0.5, "noise": 0.5}, "leave nothing of the pool: lower them"),
        ({"factor": 1}, r"factor=1 has no place .*blank=0\.01.* raise factor to 1\.0205, or lower"),
        ({"size": 9}, "size=9 has not one distinct image at factor=10: raise size to 10"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Degrade(**given)


def test_the_remedies_work():
    assert Degrade(factor=1.0205) and Degrade(size=10)
    assert len(plan_pool(Degrade(factor=1.0205), 7).what) >= 7
    assert plan_pool(Degrade(size=70), 7).distinct == 7


def test_what_a_source_cannot_give_is_refused(strangers, tmp_path):
    out = tmp_path / "out"
    for i in range(4):
        put(tmp_path / f"plain/{i}.png", png(i))
        put(tmp_path / f"held/test/{i}.png", png(i))
    put(tmp_path / "broken/a.jpg", b"no image")
    web = Degrade(off_topic=0.1)
    refused("digits", out, r"off_topic=0\.1 needs a second source.*--off-topic", degrade=web)
    refused("digits", out, "off_topic=0 takes nothing", degrade=Degrade(), off_topic=str(strangers))
    refused("digits", out, "for a degraded pool: set degrade", off_topic=str(strangers))
    many = Degrade(size=20_000)
    refused("digits", out, "takes 2000 distinct .* has 1437 .*lower size to 14370", degrade=many)
    tail = Degrade(long_tail=9)
    refused(tmp_path / "plain", out, "long_tail=9 needs a class .*'0' has no .cls", degrade=tail)
    refused(tmp_path / "held", out, r"splits \['test'\] and no train", degrade=Degrade())
    broken = Degrade(exact=0)
    refused(tmp_path / "broken", out, "'a' cannot be changed .*remove it", degrade=broken)


def by_command(*words: str) -> int | str | None:
    try:
        main(["shards", *words])
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_says_what_it_made(tmp_path, strangers, capsys):
    words = ("digits", str(tmp_path), "--degrade", "factor=2,blank=0", "--degrade", "size=400")
    assert by_command(*words, "--degrade", "off_topic=0.25", "--off-topic", str(strangers)) == 0
    said = capsys.readouterr().out
    assert "train: 400 samples" in said and "100 off_topic" in said and "truth.parquet" in said
    assert "200 original" in said and "blank" not in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("factro=2", "--degrade.factro: unknown key; did you mean 'factor'?"),
        ("factor=x", "--degrade.factor: expected a valid number, got 'x'"),
        ("size=1.5", "--degrade.size: expected"),
        ("factor", "--degrade 'factor': expected key=value"),
        ("seed=1,seed=2", "seed is given twice"),
        ("factor=0", "factor=0: choose from 1"),
    ],
)
def test_the_command_refuses_settings(tmp_path, capsys, value, said):
    assert by_command("digits", str(tmp_path / "out"), "--degrade", value) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_degrade_alone_is_the_defaults(tmp_path):
    for i in range(3):
        put(tmp_path / f"in/{i}.png", encoded(picture(i), "PNG"))
    assert by_command(str(tmp_path / "in"), str(tmp_path / "a"), "--degrade") == 0
    make_shards(str(tmp_path / "in"), tmp_path / "b", degrade=Degrade())
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
