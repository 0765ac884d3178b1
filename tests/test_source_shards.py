"""Shards as a source of shards: nothing of a sample is lost, wherever the shards lie."""

import json
import tarfile
from pathlib import Path

import pytest
from test_sources import by_webdataset, everything, png, put, refused

from coreset_ray.io.source_shards import names_shards
from coreset_ray.io.sources import Sample, make_shards, write_shards

SAMPLES = [
    Sample("a", {"png": png(0), "cls": b"1", "json": b"{}"}),
    Sample("b/c", {"txt": b"before its image", "jpg": png(1)}),
    Sample("d", {"png": png(2), "seg.png": png(3)}),
    Sample("of_no_image", {"txt": b"left out"}),
]


def members(samples: list[Sample]) -> dict[str, dict[str, bytes]]:
    return {s.key: s.members for s in samples}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_shards(SAMPLES, tmp_path / "pool", per_shard=2)
    return tmp_path / "pool"


@pytest.mark.parametrize("form", ["{}", "{}/*.tar", "{}/0000{{0..1}}.tar", "@{}/../list.txt"])
def test_every_way_to_name_shards_keeps_bytes_and_sidecars(pool, tmp_path, form):
    put(tmp_path / "list.txt", f"{pool}/00000.tar\n{pool}/00001.tar\n".encode())
    report = make_shards(form.format(pool), tmp_path / "out", per_shard=5)
    assert report == {"splits": {"train": {"samples": 3, "shards": 1}}, "classes": [], "ignored": 1}
    assert by_webdataset(tmp_path / "out") == members(SAMPLES[:3])


def test_one_shard_is_a_source(pool, tmp_path):
    make_shards(str(pool / "00000.tar"), tmp_path / "out")
    assert by_webdataset(tmp_path / "out") == members(SAMPLES[:2])


def test_what_was_made_is_made_again_with_splits_and_classes(tmp_path):
    made = make_shards("digits", tmp_path / "a", per_shard=500, shuffle=False)
    again = make_shards(str(tmp_path / "a"), tmp_path / "b", per_shard=500, shuffle=False)
    assert again == made and everything(tmp_path / "a") == everything(tmp_path / "b")


def test_splits_may_come_of_a_brace_range(tmp_path):
    for split in ("train", "test"):
        write_shards([Sample(split, {"png": png(0)})], tmp_path / split)
    report = make_shards(f"{tmp_path}/{{train,test}}/*.tar", tmp_path / "out")
    assert {s: c["samples"] for s, c in report["splits"].items()} == {"train": 1, "test": 1}
    write_shards([Sample("more", {"png": png(0)})], tmp_path / "extra")
    report = make_shards(f"{tmp_path}/{{train,extra}}/*.tar", tmp_path / "one")
    assert report["splits"] == {"train": {"samples": 2, "shards": 1}}


def test_keys_of_several_shards_take_the_name_of_theirs(pool, tmp_path):
    write_shards([Sample("a", {"png": png(9)})], pool / "more")
    make_shards(str(pool), tmp_path / "out")
    assert set(by_webdataset(tmp_path / "out")) == {
        "00000/a",
        "00000/b/c",
        "00001/d",
        "more/00000/a",
    }


def test_unsafe_keys_are_made_safe(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("./é.png", "__y__.png"):
            tar.add(put(tmp_path / "image", png(0)), name)
    make_shards(str(tmp_path / "x.tar"), tmp_path / "out")
    assert set(by_webdataset(tmp_path / "out")) == {"_", "_y__"}


def test_a_folder_with_an_image_is_a_folder_of_images(pool, tmp_path):
    assert names_shards(str(pool)) and not names_shards(str(tmp_path / "none"))
    put(pool / ".hidden.png", b"")
    assert names_shards(str(pool))
    put(pool / "cat/x.png", png(0))
    assert not names_shards(str(pool))
    odd = put(tmp_path / "images{1}/x.png", png(0)).parent
    assert make_shards(str(odd), tmp_path / "out")["splits"]["train"]["samples"] == 1


def test_shards_that_cannot_be_used_are_named(pool, tmp_path):
    out = tmp_path / "out"
    refused(tmp_path / "*.tar", out, r"source .*\*\.tar' cannot be read as shards: .*no shard")
    refused(tmp_path / "none.tar", out, r"none\.tar' does not exist")
    write_shards([SAMPLES[3]], tmp_path / "empty")
    refused(tmp_path / "empty", out, "empty' hold no images")
    whole = (pool / "00000.tar").read_bytes()
    put(pool / "00001.tar", whole[:700])
    refused(pool, out, r"00001\.tar' ends early .*leave it out")
    with tarfile.open(pool / "00001.tar", "w") as tar:
        for _ in range(2):
            for name in ("e.png", "f.png"):
                tar.add(put(tmp_path / "image", png(0)), name)
    refused(pool, out, r"key 'e' comes twice in shard .*00001\.tar")


def test_a_shard_that_shrinks_is_named(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("coreset_ray.io.source_shards.OpenFiles.read", lambda *_: b"")
    with pytest.raises(ValueError, match=r"00000\.tar' became shorter"):
        make_shards(str(pool), tmp_path / "out", shuffle=False)


def test_open_files_are_few(tmp_path):
    from coreset_ray.io.open_files import OpenFiles

    paths = [str(put(tmp_path / f"{i}", json.dumps(i).encode())) for i in range(40)]
    files = OpenFiles()
    for _ in range(2):
        assert [int(files.read(path, 0, 9)) for path in paths] == list(range(40))
        assert len(files._open) <= 16
    files.close()
