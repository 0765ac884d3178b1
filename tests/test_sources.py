"""Shards from digits, torchvision and folders, read back as a stranger would read them."""

import gc
import io
import os
import string
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coreset_ray.io.sources import (
    Sample,
    digits_samples,
    folder_samples,
    make_shards,
    torchvision_samples,
    write_shards,
)


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, format="PNG")
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def by_tarfile(folder: Path) -> dict[str, bytes]:
    """Member name -> bytes over every shard below the folder; each name once."""
    members: dict[str, bytes] = {}
    for shard in sorted(folder.rglob("*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                stream = tar.extractfile(info)
                assert stream is not None and info.name not in members
                members[info.name] = stream.read()
    return members


def by_webdataset(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> bytes, as the webdataset library reads the shards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        samples = _webdataset_samples(sorted(map(str, folder.rglob("*.tar"))))
        gc.collect()
    assert len({key for key, _ in samples}) == len(samples)
    return dict(samples)


def _webdataset_samples(urls: list[str]) -> list[tuple[str, dict[str, bytes]]]:
    import webdataset as wds

    dataset = wds.WebDataset(urls, shardshuffle=False)  # pyright: ignore[reportAttributeAccessIssue]
    return [
        (sample["__key__"], {e: b for e, b in sample.items() if not e.startswith("__")})
        for sample in dataset
    ]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Three cats and two dogs, one with sidecars, and files that belong to no image."""
    root = tmp_path / "animals"
    for i, name in enumerate(
        ("cat/a.PNG", "cat/b.c.png", "cat/deep/a.png", "dog/a.png", "dog/b.jpg")
    ):
        put(root / name, png(i))
    put(root / "cat/a.TXT", b"a cat")
    put(root / "cat/a.json", b"{}")
    put(root / "README.md", b"of no image")
    put(root / "cat/.hidden.png", b"not seen at all")
    return root


# --- the writer --------------------------------------------------------------------------------


def test_what_is_written_is_read_back_by_tarfile_and_webdataset(tmp_path):
    long = "x" * 150
    samples = [Sample(f"{long}/{i}", {"png": png(i), "a.b": b"%d" % i}) for i in range(7)]
    shards = write_shards(iter(samples), tmp_path, per_shard=3)
    assert [s.name for s in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert by_webdataset(tmp_path) == {s.key: s.members for s in samples}
    assert by_tarfile(tmp_path) == {
        f"{s.key}.{e}": content for s in samples for e, content in s.members.items()
    }


def test_no_samples_make_no_shards(tmp_path):
    assert write_shards([], tmp_path) == []


def test_members_carry_nothing_of_this_machine(tmp_path):
    (shard,) = write_shards([Sample("a", {"png": png(1)})], tmp_path)
    with tarfile.open(shard.path) as tar:
        info = tar.getmember("a.png")
    assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
    assert (info.uname, info.gname) == ("coreset-ray", "coreset-ray")


def test_a_crash_leaves_whole_shards_only(tmp_path):
    def samples():
        yield from (Sample(str(i), {"png": png(i)}) for i in range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(samples(), tmp_path, per_shard=2)
    assert [p.name for p in tmp_path.iterdir()] == ["00000.tar"]
    assert set(by_webdataset(tmp_path)) == {"0", "1"}


def test_a_key_twice_in_a_shard_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'a' comes twice"):
        write_shards([Sample("a", {"png": b""})] * 2, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["", "a.b", "a b", "é", "__a__/b"])
def test_unsafe_keys_are_refused(key):
    with pytest.raises(ValueError, match="not safe"):
        Sample(key, {"png": b""})


@pytest.mark.parametrize("extension", ["", ".png", "_x", "PNG", "a/b", "a b"])
def test_unsafe_extensions_are_refused(extension):
    with pytest.raises(ValueError, match="does not survive"):
        Sample("a", {extension: b""})


# --- digits ------------------------------------------------------------------------------------


def test_digits_are_all_there_with_pixels_and_classes(tmp_path):
    from sklearn.datasets import load_digits

    report = make_shards("digits", tmp_path, per_shard=500)
    assert report == {
        "splits": {"train": {"samples": 1437, "shards": 3}, "test": {"samples": 360, "shards": 1}},
        "classes": list("0123456789"),
        "ignored": 0,
    }
    pixels, labels = load_digits(return_X_y=True)
    samples = by_webdataset(tmp_path)
    assert sorted(samples) == [f"{row:05d}" for row in range(1797)]
    for key, members in samples.items():
        image = np.asarray(Image.open(io.BytesIO(members["png"])))
        assert image.dtype == np.uint8 and image.shape == (8, 8)
        np.testing.assert_array_equal(np.rint(image.ravel() / 255 * 16), pixels[int(key)])
        assert int(members["cls"]) == labels[int(key)]
    held_out = [int(m["cls"]) for m in by_webdataset(tmp_path / "test").values()]
    assert np.abs(np.bincount(held_out) - 0.2 * np.bincount(labels)).max() <= 1
    assert (tmp_path / "classes.txt").read_text().split() == list("0123456789")


def test_same_seed_same_bytes_another_seed_another_split(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_shards("digits", tmp_path / name, seed=seed)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    keys = [set(by_webdataset(tmp_path / name / "test")) for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_digits_samples_are_the_splits():
    train, test = ({s.key for s in digits_samples(split, seed=3)} for split in ("train", "test"))
    assert (len(train), len(test), len(train & test)) == (1437, 360, 0)
    with pytest.raises(ValueError, match="no split 'val'"):
        digits_samples("val")  # pyright: ignore[reportArgumentType]


def test_digits_without_scikit_learn_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"coreset-ray\[demo\]"):
        make_shards("digits", tmp_path)


# --- folders -----------------------------------------------------------------------------------


def test_class_folders_keep_bytes_sidecars_and_classes(animals, tmp_path):
    report = make_shards(str(animals), tmp_path / "out", per_shard=2)
    assert report["splits"] == {"train": {"samples": 5, "shards": 3}}
    assert report["classes"] == ["cat", "dog"] and report["ignored"] == 1
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ndog\n"
    expected = {
        "cat/a": {"png": png(0), "txt": b"a cat", "json": b"{}", "cls": b"0"},
        "cat/b_c": {"png": png(1), "cls": b"0"},
        "cat/deep/a": {"png": png(2), "cls": b"0"},
        "dog/a": {"png": png(3), "cls": b"1"},
        "dog/b": {"jpg": png(4), "cls": b"1"},
    }
    assert by_webdataset(tmp_path / "out") == expected
    assert {s.key: s.members for s in folder_samples(animals)} == expected


def test_images_without_class_folders_have_no_cls(tmp_path):
    for i, extension in enumerate(("jpg", "JPEG", "png", "WebP", "bmp", "tif", "TIFF")):
        put(tmp_path / f"in/{i}.{extension}", png(i))
    put(tmp_path / "in/0.cls", b"7")  # no class folder: a sidecar like any other
    report = make_shards(str(tmp_path / "in"), tmp_path / "out")
    assert report["classes"] == [] and not (tmp_path / "out/classes.txt").exists()
    samples = by_webdataset(tmp_path / "out")
    assert samples.pop("0") == {"jpg": png(0), "cls": b"7"}
    assert [list(samples[key]) for key in sorted(samples)] == [
        [e] for e in ("jpeg", "png", "webp", "bmp", "tif", "tiff")
    ]


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_split_folders_share_one_class_index(tmp_path, held_out):
    for i, name in enumerate(("train/bee/x.png", "train/cow/x.png", f"{held_out}/cow/x.png")):
        put(tmp_path / "in" / name, png(i))
    report = make_shards(str(tmp_path / "in"), tmp_path / "out")
    assert {s: c["samples"] for s, c in report["splits"].items()} == {"train": 2, held_out: 1}
    assert report["classes"] == ["bee", "cow"]
    assert by_webdataset(tmp_path / "out" / held_out) == {
        f"{held_out}/cow/x": {"png": png(2), "cls": b"1"}
    }


def test_a_fourth_folder_makes_train_a_class(tmp_path):
    for name in ("train/x.png", "test/x.png", "tram/x.png"):
        put(tmp_path / "in" / name, png(0))
    assert make_shards(str(tmp_path / "in"), tmp_path / "out")["classes"] == [
        "test",
        "train",
        "tram",
    ]


def test_shuffle_mixes_classes_over_shards_and_shuffle_off_keeps_the_order(tmp_path):
    for i in range(100):
        put(tmp_path / f"in/{'ab'[i // 50]}/{i:03d}.png", png(i))
    source = str(tmp_path / "in")
    make_shards(source, tmp_path / "sorted", per_shard=50, shuffle=False)
    for name, seed in (("x", 0), ("y", 0), ("z", 1)):
        make_shards(source, tmp_path / name, per_shard=50, seed=seed)
    assert list(by_webdataset(tmp_path / "sorted")) == [
        f"{'ab'[i // 50]}/{i:03d}" for i in range(100)
    ]
    assert everything(tmp_path / "x") == everything(tmp_path / "y") != everything(tmp_path / "z")
    for shard in ("x/train/00000.tar", "x/train/00001.tar"):
        with tarfile.open(tmp_path / shard) as tar:
            in_a = sum(name.startswith("a/") for name in tar.getnames()) / 2
        assert 10 < in_a < 40
    assert by_tarfile(tmp_path / "x") == by_tarfile(tmp_path / "sorted")


def test_names_that_webdataset_would_skip_or_merge_stay_apart(tmp_path):
    names = (
        "__x__/a.png",
        "猫/a.png",
        "n.01/a.b.png",
        "n.01/a_b.png",
        "n.01/a b.png",
        "n 01/a.b.png",
    )
    for i, name in enumerate(names):
        put(tmp_path / "in" / name, png(i))
    make_shards(str(tmp_path / "in"), tmp_path / "out")
    samples = by_webdataset(tmp_path / "out")
    assert sorted(m["png"] for m in samples.values()) == sorted(png(i) for i in range(6))
    assert set(samples) == {"_/a", "_x__/a", *(f"n_01/a_b{end}" for end in ("", "_1", "_2", "_3"))}


def test_two_images_of_one_stem_are_two_samples_with_the_same_sidecar(tmp_path):
    put(tmp_path / "in/a.png", png(0))
    put(tmp_path / "in/a.jpg", png(1))
    put(tmp_path / "in/a.txt", b"both")
    make_shards(str(tmp_path / "in"), tmp_path / "out")
    assert by_webdataset(tmp_path / "out") == {
        "a": {"jpg": png(1), "txt": b"both"},
        "a_1": {"png": png(0), "txt": b"both"},
    }


_NAMES = st.text(st.sampled_from(string.ascii_letters[:3] + "._- _1é猫~"), min_size=1, max_size=6)


@settings(deadline=None, database=None, max_examples=8)
@given(st.sets(_NAMES.filter(lambda name: not name.startswith(".")), min_size=1, max_size=8))
def test_any_file_names_survive(names):
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(sorted(names)):
            put(Path(folder, "in", name, f"{name}.png"), png(i))
        make_shards(f"{folder}/in", f"{folder}/out", per_shard=3)
        samples = by_webdataset(Path(folder, "out"))
        assert not any("." in key for key in samples)
        found = {int(members["cls"]): members["png"] for members in samples.values()}
        assert found == {i: png(i) for i in range(len(names))}


# --- torchvision -------------------------------------------------------------------------------


def _dataset_class(option: str | None, splits=("train", "test"), item=None):
    """A torchvision dataset of arrays whose constructor takes `train=`, `split=` or neither."""
    from torchvision.datasets import VisionDataset
    from torchvision.datasets.utils import verify_str_arg

    class Arrays(VisionDataset):
        shade = 0
        classes = ("zero", ("one", "uno"))

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return item or (Image.new("RGB", (5, 3), (index, 0, self.shade)), np.int64(index % 2))

    def by_train(self, root, train=True, download=False):
        VisionDataset.__init__(self, root)
        self.shade = 1 if train else 2

    def by_split(self, root, split="train"):
        VisionDataset.__init__(self, root)
        self.shade = 1 + splits.index(verify_str_arg(split, "split", splits))

    def by_nothing(self, root):
        VisionDataset.__init__(self, root)
        self.shade = 1

    Arrays.__init__ = {"train": by_train, "split": by_split, None: by_nothing}[option]
    return Arrays


@pytest.mark.parametrize(
    ("option", "splits"),
    [("train", ("train", "test")), ("split", ("train", "test")), ("split", ("trainval", "val"))],
)
def test_torchvision_arrays_become_png_in_train_and_test(tmp_path, monkeypatch, option, splits):
    monkeypatch.setattr(
        "torchvision.datasets.Arrays", _dataset_class(option, splits), raising=False
    )
    report = make_shards("torchvision:Arrays", tmp_path, root=tmp_path, per_shard=3)
    assert report["classes"] == ["zero", "one, uno"]
    assert report["splits"] == {s: {"samples": 4, "shards": 2} for s in ("train", "test")}
    samples = by_webdataset(tmp_path)
    assert sorted(samples) == [f"{s}-{i:08d}" for s in ("test", "train") for i in range(4)]
    for key, members in samples.items():
        split, number = key.split("-")
        image = Image.open(io.BytesIO(members["png"]))
        assert image.size == (5, 3)
        assert image.getpixel((0, 0)) == (int(number), 0, 1 if split == "train" else 2)
        assert int(members["cls"]) == int(number) % 2


def test_torchvision_without_splits_is_all_train(tmp_path, monkeypatch):
    from torchvision.datasets import FakeData

    class Small(FakeData):
        def __init__(self):
            super().__init__(size=3, image_size=(3, 8, 8))

    monkeypatch.setattr("torchvision.datasets.FakeData", Small)
    report = make_shards("torchvision:FakeData", tmp_path)
    assert report == {"splits": {"train": {"samples": 3, "shards": 1}}, "classes": [], "ignored": 0}
    assert len(list(torchvision_samples("FakeData", None, "train"))) == 3
    with pytest.raises(ValueError, match="no split 'test'"):
        torchvision_samples("FakeData", None, "test")


def test_torchvision_keeps_the_bytes_of_files(animals, tmp_path):
    odd = tmp_path / "odd.ppm"
    Image.new("RGB", (4, 4), (1, 2, 3)).save(odd)
    put(animals / "dog/c.ppm", odd.read_bytes())
    report = make_shards("torchvision:ImageFolder", tmp_path / "out", root=animals)
    assert report["classes"] == ["cat", "dog"]
    samples = by_webdataset(tmp_path / "out")
    re_encoded = samples.pop("train-00000006")
    assert Image.open(io.BytesIO(re_encoded["png"])).getpixel((0, 0)) == (1, 2, 3)
    # ImageFolder has no rule on hidden files, so cat/.hidden.png comes first.
    assert samples["train-00000001"] == {"png": png(0), "cls": b"0"}
    assert samples["train-00000005"] == {"jpg": png(4), "cls": b"1"}


def test_torchvision_unknown_name_gives_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no dataset 'cifar_10'.*CIFAR10"):
        make_shards("torchvision:cifar_10", tmp_path)
    with pytest.raises(ValueError, match=r"no dataset 'qqqqqq'.*see torchvision"):
        make_shards("torchvision:qqqqqq", tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "EMNIST", "CocoDetection", "ImageNet"])
def test_torchvision_that_does_not_open_says_why(tmp_path, name):
    with pytest.raises(ValueError, match=rf"datasets\.{name}\(.*does not open.*check root"):
        make_shards(f"torchvision:{name}", tmp_path / "out", root=tmp_path)
    with pytest.raises(ValueError, match="needs root"):
        make_shards(f"torchvision:{name}", tmp_path / "out")


@pytest.mark.parametrize("item", [("a", None), (1, 2, 3), ("a", 0.5)])
def test_torchvision_that_is_no_classification_is_refused(tmp_path, monkeypatch, item):
    kind = _dataset_class(None, item=item)
    monkeypatch.setattr("torchvision.datasets.Arrays", kind, raising=False)
    with pytest.raises(ValueError, match=r"item \d of .*choose a classification dataset"):
        make_shards("torchvision:Arrays", tmp_path, root=tmp_path)


def test_settings_that_are_ignored_are_told(animals, tmp_path):
    with pytest.warns(UserWarning, match="ignored for"):
        make_shards(str(animals), tmp_path / "a", download=True)
    with pytest.warns(UserWarning, match="cannot download"):
        make_shards("torchvision:ImageFolder", tmp_path / "b", root=animals, download=True)


# --- bad input ---------------------------------------------------------------------------------


def refused(source: Path | str, out: Path, match: str, **options) -> None:
    """make_shards says why not, and leaves nothing behind."""
    before = everything(out) if out.exists() else {}
    with pytest.raises(ValueError, match=match):
        make_shards(str(source), out, **options)
    assert (everything(out) if out.exists() else {}) == before


def test_missing_file_and_empty_sources(animals, tmp_path):
    out = tmp_path / "out"
    refused(tmp_path / "none", out, "none' does not exist: give a folder")
    refused(animals / "README.md", out, "is not a folder")
    put(tmp_path / "empty/sub/a.txt", b"")
    refused(tmp_path / "empty", out, "no images in .*empty'")
    put(tmp_path / "half/train/a.png", png(0))
    (tmp_path / "half/test").mkdir()
    refused(tmp_path / "half", out, "no images in .*test'")


def test_images_with_and_without_classes(animals, tmp_path):
    put(animals / "loose.png", png(9))
    refused(animals, tmp_path / "out", r"mixes images.*cat/a\.PNG.*loose\.png.*move them")
    put(tmp_path / "in/train/cat/a.png", png(0))
    put(tmp_path / "in/test/a.png", png(0))
    refused(tmp_path / "in", tmp_path / "out", r"mixes images.*train/cat/a\.png.*test/a\.png")


def test_two_files_for_one_member(animals, tmp_path):
    put(animals / "cat/a.txt", b"another")
    refused(animals, tmp_path / "out", r"a\.TXT.*'txt'|a\.txt.*'txt'")
    (animals / "cat/a.txt").unlink()
    put(animals / "dog/a.cls", b"3")
    refused(animals, tmp_path / "out", r"a\.cls' and 'its class folder'.*rename")


@pytest.mark.parametrize("per_shard", [0, -3])
def test_per_shard_below_one(animals, tmp_path, per_shard):
    refused(animals, tmp_path / "out", rf"per_shard is {per_shard}: choose", per_shard=per_shard)


def test_output_that_holds_shards_or_lies_in_the_source(animals, tmp_path):
    out = tmp_path / "out"
    make_shards(str(animals), out)
    refused(animals, out, r"out' already holds shards.*00000\.tar.*choose an empty")
    refused("digits", out, "already holds shards")
    with pytest.raises(ValueError, match="already holds shards"):
        write_shards([], out / "train")
    refused(animals, animals / "shards", "lies in the source.*choose a folder outside")
    refused(animals, put(tmp_path / "file", b""), "cannot make the folder")


@pytest.mark.parametrize("target", ["../outside.png", "..", "nowhere.png", "loop.png"])
def test_links_that_leave_the_source_are_not_followed(animals, tmp_path, target):
    put(tmp_path / "outside.png", png(0))
    os.symlink(animals / target, animals / "loop.png")
    refused(animals, tmp_path / "out", r"loop\.png' leads out of the source .*not followed")


def test_links_within_the_source_are_read_once(animals, tmp_path):
    os.symlink(animals / "cat/a.PNG", animals / "dog/linked.png")
    os.symlink(animals / "cat", animals / "cow")
    report = make_shards(str(animals), tmp_path / "out")
    assert report["classes"] == ["cat", "dog"] and report["splits"]["train"]["samples"] == 6


def test_a_file_that_goes_away_is_named(animals, tmp_path):
    samples = folder_samples(animals)
    next(samples)
    (animals / "cat/b.c.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*b\.c\.png"):
        next(samples)


def test_a_folder_that_cannot_be_listed(animals, tmp_path, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("coreset_ray.io.source_folder.os.scandir", denied)
    refused(animals, tmp_path / "out", "cannot list .*Permission denied")


def test_a_class_name_of_two_lines(tmp_path):
    put(tmp_path / "in/a\nb/x.png", png(0))
    refused(tmp_path / "in", tmp_path / "out", "does not fit on one line")
