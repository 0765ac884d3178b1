"""Exported shards hold the original bytes under safe keys; lists and labels say the same."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import warnings

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset_ray.io.export import (
    MEMBERS,
    export_key,
    find_members,
    grouped,
    write_lists,
    write_shard,
)
from coreset_ray.io.filesystem import locate
from coreset_ray.io.labels import attach_labels, class_names
from coreset_ray.io.shards import list_shards, read_samples
from coreset_ray.io.tables import uid_of

CONTENT = {
    "k1": {"txt": b"a caption, kept", "jpg": b"\xff\xd8one", "cls": b"3"},
    "deep.d/k2": {"png": b"\x89PNGtwo" * 200, "seg.png": b"mask", "json": b'{"a": 1}'},
    "k3": {"jpeg": b"three", "cls": b"10\n"},
}


def make_shard(path, content, extra=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in [*content.items(), *extra]:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (shard,) = list_shards([str(path)])
    return shard


def samples_of(members, hashes=None):
    """What `write_shard` takes, with the images' true hashes unless told otherwise."""
    for uid, rows in grouped(members, "uid").items():
        shard, key = rows["shard"][0].as_py(), rows["key"][0].as_py()
        (image,) = rows.filter(rows["image"]).to_pylist()
        data = open_bytes(image["path"])[image["offset"] : image["offset"] + image["size"]]
        digest = (hashes or {}).get(key) or hashlib.sha256(data).hexdigest()
        yield export_key(shard, key, uid), rows, digest


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def contents(path):
    """Every member of a shard in order."""
    data = open_bytes(path)
    return [
        (s.key, [(e, m.data) for e, m in s.members.items()])
        for s in read_samples(io.BytesIO(data), len(data))
    ]


# --- finding and copying ---------------------------------------------------------------------


def test_members_are_found_with_their_place_and_label(tmp_path):
    shard = make_shard(tmp_path / "s.tar", CONTENT)
    rows = find_members(shard, ["k3", "k1", "absent"])
    assert rows.schema == MEMBERS
    raw = open_bytes(shard.uri)
    found = [
        (r["key"], r["extension"], raw[r["offset"] : r["offset"] + r["size"]])
        for r in rows.to_pylist()
    ]
    assert found == [(k, e, d) for k in ("k1", "k3") for e, d in CONTENT[k].items()]
    assert rows["image"].to_pylist() == [False, True, False, True, False]
    assert rows["text"].to_pylist() == [None, None, "3", None, "10\n"]
    assert set(rows["uid"].to_pylist()) == {uid_of("s.tar", "k1"), uid_of("s.tar", "k3")}


def test_the_first_of_two_samples_with_one_key_is_meant(tmp_path):
    extra = [("k1", {"jpg": b"second", "cls": b"9"})]
    shard = make_shard(tmp_path / "s.tar", CONTENT, extra)
    rows = find_members(shard, ["k1"])
    assert rows["text"].to_pylist() == [None, None, "3"]


def test_what_lies_before_the_break_of_a_shard_is_found(tmp_path):
    whole = make_shard(tmp_path / "s.tar", CONTENT)
    with tarfile.open(whole.uri) as tar:
        last = tar.getmembers()[-1]
    (tmp_path / "s.tar").write_bytes(open_bytes(whole.uri)[: last.offset])
    (cut,) = list_shards([whole.uri])
    found = find_members(cut, CONTENT)
    expected = [(k, e) for k in ("k1", "deep.d/k2") for e in CONTENT[k]]
    assert list(zip(*(found[c].to_pylist() for c in ("key", "extension")), strict=True)) == expected


def test_every_member_is_copied_byte_by_byte_in_order(tmp_path):
    shard = make_shard(tmp_path / "in/s.tar", CONTENT)
    members = find_members(shard, CONTENT)
    out = locate(tmp_path / "out/00000.tar")
    write_shard(out, samples_of(members))
    expected = [(k, list(m.items())) for k, m in CONTENT.items()]
    keys = ["s/k1", "s.tar/deep.d/k2", "s/k3"]
    assert contents(out.path) == [(k, m) for k, (_, m) in zip(keys, expected, strict=True)]


def test_samples_of_many_shards_meet_in_one(tmp_path):
    shards = [
        make_shard(tmp_path / f"in/{i:02d}.tar", {"k": {"jpg": b"%d" % i, "cls": b"1"}})
        for i in range(20)  # more than are held open at once
    ]
    members = pa.concat_tables([find_members(s, ["k"]) for s in shards])
    write_shard(locate(tmp_path / "out.tar"), samples_of(members))
    expected = [(f"{i:02d}/k", [("jpg", b"%d" % i), ("cls", b"1")]) for i in range(20)]
    assert contents(tmp_path / "out.tar") == expected


def test_the_same_samples_give_the_same_bytes(tmp_path):
    shard = make_shard(tmp_path / "in/s.tar", CONTENT)
    members = find_members(shard, CONTENT)
    for name in ("a.tar", "b.tar"):
        write_shard(locate(tmp_path / name), samples_of(members))
    os.utime(shard.uri, (1, 1))
    write_shard(locate(tmp_path / "c.tar"), samples_of(members.combine_chunks()))
    assert len({open_bytes(tmp_path / name) for name in ("a.tar", "b.tar", "c.tar")}) == 1


def test_the_webdataset_library_reads_an_exported_shard(tmp_path):
    import webdataset as wds

    shard = make_shard(tmp_path / "in/s.tar", CONTENT)
    write_shard(locate(tmp_path / "out.tar"), samples_of(find_members(shard, CONTENT)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library leaves its file open
        read = [
            (s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")})
            for s in wds.WebDataset(str(tmp_path / "out.tar"), shardshuffle=False)
        ]
    keys = ["s/k1", "s.tar/deep.d/k2", "s/k3"]
    assert read == list(zip(keys, CONTENT.values(), strict=True))


def test_changed_image_bytes_are_refused_and_leave_no_shard(tmp_path):
    shard = make_shard(tmp_path / "in/s.tar", CONTENT)
    members = find_members(shard, CONTENT)
    hashes = {k: hashlib.sha256(CONTENT[k][e]).hexdigest() for k, e in [("k3", "jpeg")]}
    changed = {**CONTENT, "k3": {"jpeg": b"THREE", "cls": b"10\n"}}
    make_shard(tmp_path / "in/s.tar", changed)
    with pytest.raises(RuntimeError, match="run embed") as error:
        write_shard(locate(tmp_path / "out/0.tar"), samples_of(members, hashes))
    assert "'k3'" in str(error.value) and shard.uri in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_source_that_is_gone_or_cut_leaves_no_shard(tmp_path):
    shard = make_shard(tmp_path / "in/s.tar", CONTENT)
    samples = list(samples_of(find_members(shard, CONTENT)))
    (tmp_path / "in/s.tar").write_bytes(open_bytes(shard.uri)[:1000])
    with pytest.raises((OSError, RuntimeError)):
        write_shard(locate(tmp_path / "out/0.tar"), samples)
    (tmp_path / "in/s.tar").unlink()
    with pytest.raises(OSError, match=r"s\.tar"):
        write_shard(locate(tmp_path / "out/0.tar"), samples)
    assert list((tmp_path / "out").iterdir()) == []


# --- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shard", "key", "expected"),
    [
        ("s.tar", "k", "s/k"),
        ("web/00000.tar", "000010005", "web/00000/000010005"),
        ("s.tar", "größe 東京", "s/größe 東京"),
        ("s", "k", "s/k"),
        ("s.tar", "d/k", "s.tar/d/k"),
        ("s.tar", "../k", "UID"),
        ("s.tar", "a/../../k", "UID"),
        ("s.tar", "./k", "UID"),
        ("s.tar", "/etc/k", "UID"),
        ("s.tar", "a//k", "UID"),
        ("s.tar", "a\\..\\k", "UID"),
        ("s.tar", "C:k", "UID"),
        ("s.tar", "line\nbreak", "UID"),
        ("s.tar", "nul\0", "UID"),
        ("s.tar", "del\x7f", "UID"),
        ("s.tar", "x" * 240, "UID"),
        ("s.tar", "ü" * 120, "UID"),
        (".tar", "k", "UID"),
        ("...tar", "k", "UID"),
    ],
)
def test_a_key_is_readable_where_that_is_safe(shard, key, expected):
    assert export_key(shard, key, "UID") == expected


def test_keys_of_different_samples_stay_apart():
    names = [
        *[("a.tar", "b/c"), ("a/b.tar", "c"), ("a.tar", "c"), ("a.tar", "b.tar/c")],
        *[("b.tar", "c"), ("a/b.tar", "b/c"), ("a.tar", "b/b/c")],
    ]
    assert len({export_key(s, k, uid_of(s, k)) for s, k in names}) == len(names)


_PART = st.one_of(
    st.text("ab.", min_size=1, max_size=4),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="."), min_size=1),
    st.sampled_from(["..", ".", "~", "C:\\x", "con", "-rf", "x" * 255, "\x00", "\n", "\x1b[2J"]),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(_PART, min_size=1, max_size=4).map("/".join),
    st.tuples(st.lists(_PART, max_size=3), st.text("ab\\\n:~ ü", min_size=1, max_size=300)).map(
        lambda parts: "/".join([*parts[0], parts[1]])
    ),
    st.sampled_from(["", "/"]),
)
def test_an_exported_shard_unpacks_inside_its_folder(tmp_path_factory, shard, key, slash):
    folder = tmp_path_factory.mktemp("unpack")
    (folder / "in.bin").write_bytes(b"image")
    uid = uid_of(shard, slash + key)
    row = {
        **{"uid": uid, "shard": shard, "key": slash + key, "path": str(folder / "in.bin")},
        **{"extension": "jpg", "image": True, "offset": 0, "size": 5, "text": None},
    }
    name = export_key(f"{shard}.tar", slash + key, uid)
    rows = pa.Table.from_pylist([row], schema=MEMBERS)
    out = folder / "0.tar"
    write_shard(locate(out), [(name, rows, hashlib.sha256(b"image").hexdigest())])
    with tarfile.open(out) as tar:
        tar.extractall(folder / "into" / "here", filter="data")
    inside = [p for p in (folder / "into").rglob("*") if p.is_file()]
    assert inside == [folder / "into" / "here" / f"{name}.jpg"]
    assert sorted(p.name for p in folder.iterdir()) == ["0.tar", "in.bin", "into"]
    assert contents(out) == [(name, [("jpg", b"image")])], "the key reads back as it was written"


# --- lists -----------------------------------------------------------------------------------


def test_csv_and_jsonl_hold_the_same_rows(tmp_path):
    keys = [
        "plain",
        "größe 東京 🎈",
        'quo"te',
        "com,ma",
        "line\nbreak",
        " space ",
        "",
        "007",
        "null",
    ]
    index = pa.table(
        {
            "uid": [uid_of("s.tar", k) for k in keys],
            "key": keys,
            "rank": pa.array(range(len(keys)), pa.int64()),
            "score": [0.1, 1e-300, -1 / 3, 2.0**60, 5e-324, 0.0, 1e22, 123456.789, 1.0],
        }
    )
    write_lists(locate(tmp_path), index)
    with open(tmp_path / "manifest.csv", newline="", encoding="utf-8") as file:
        from_csv = list(csv.DictReader(file))
    text = (tmp_path / "manifest.jsonl").read_text("utf-8")
    from_json = [json.loads(line) for line in text.splitlines()]
    assert from_json == index.to_pylist()
    for row, other in zip(from_csv, from_json, strict=True):
        assert {k: row[k] for k in ("uid", "key")} == {k: other[k] for k in ("uid", "key")}
        assert (int(row["rank"]), float(row["score"])) == (other["rank"], other["score"])
    before = open_bytes(tmp_path / "manifest.csv"), open_bytes(tmp_path / "manifest.jsonl")
    write_lists(locate(tmp_path), pa.concat_tables([index.slice(0, 3), index.slice(3)]))
    assert before == (open_bytes(tmp_path / "manifest.csv"), text.encode())


# --- labels ----------------------------------------------------------------------------------


@pytest.fixture
def members(tmp_path):
    shards = [
        make_shard(tmp_path / "in/0.tar", CONTENT),
        make_shard(tmp_path / "in/1.tar", {"k1": {"jpg": b"x", "cls": b" cat \n"}}),
    ]
    tables = [find_members(s, ["k1", "k3"]) for s in shards]
    return pa.concat_tables(tables)


def labels_csv(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text, "utf-8")
    return str(tmp_path / "labels.csv")


def labels_of(table):
    columns = (table[c].to_pylist() for c in ("shard", "key", "label"))
    return {(s, k): label for s, k, label in zip(*columns, strict=True)}


def test_labels_from_members(members):
    table = attach_labels(members, "cls")
    assert table["image"].to_pylist() == [True] * 3
    expected = {("0.tar", "k1"): "3", ("0.tar", "k3"): "10", ("1.tar", "k1"): "cat"}
    assert labels_of(table) == expected


def test_labels_from_csv_by_shard_and_key(members, tmp_path):
    text = "note,label,key,shard\nx,007,k1,0.tar\n,1e5,k3,0.tar\n,true,k1,1.tar\n,9,other,1.tar\n"
    expected = {("0.tar", "k1"): "007", ("0.tar", "k3"): "1e5", ("1.tar", "k1"): "true"}
    assert labels_of(attach_labels(members, labels_csv(tmp_path, text))) == expected


def test_labels_from_csv_by_key(members, tmp_path):
    source = labels_csv(tmp_path, "\ufeffkey,label\nk1,NA\nk3,größe\n")
    expected = {("0.tar", "k1"): "NA", ("0.tar", "k3"): "größe", ("1.tar", "k1"): "NA"}
    assert labels_of(attach_labels(members, source)) == expected


def test_keys_that_look_like_numbers_stay_text(tmp_path):
    shard = make_shard(tmp_path / "7.tar", {"007": {"jpg": b"a"}, "7": {"jpg": b"b"}})
    rows = find_members(shard, ["007", "7"])
    source = labels_csv(tmp_path, "key,label\n007,0010\n7,10\n")
    assert attach_labels(rows, source)["label"].to_pylist() == ["0010", "10"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key,label\nk1,a\n", "1 of 3 images"),
        ("key,label\nk1,a\nk3,\n", "1 of 3 images"),
        ("key,label\nother,a\n", "3 of 3 images"),
        ("key,label\nk1,a\nk3,b\nk1,a\n", "1 images twice"),
        ("shard,key,label\n0.tar,k1,a\n0.tar,k1,b\n", "1 images twice"),
        ("name,label\nk1,a\n", "expected key,label"),
        ("key,class\nk1,a\n", "expected key,label"),
        ("shard,label\n0.tar,a\n", "expected key,label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(members, tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as error:
        attach_labels(members, labels_csv(tmp_path, text))
    assert "labels.csv" in str(error.value)


def test_a_missing_label_names_its_image(members, tmp_path):
    with pytest.raises(ValueError, match=r"shard '0\.tar', key 'k3'"):
        attach_labels(members, labels_csv(tmp_path, "key,label\nk1,a\n"))
    with pytest.raises(ValueError, match="does not exist"):
        attach_labels(members, str(tmp_path / "missing.csv"))
    shard = make_shard(tmp_path / "2.tar", {"k": {"jpg": b"x"}})
    with pytest.raises(ValueError, match=r"1 of 1 images .*\.cls"):
        attach_labels(find_members(shard, ["k"]), "cls")


def test_images_without_a_label_are_left_out_where_that_is_asked_for(members, tmp_path):
    source = labels_csv(tmp_path, "shard,key,label\n0.tar,k1,a\n0.tar,k3, \n")
    assert labels_of(attach_labels(members, source, unlabeled="drop")) == {("0.tar", "k1"): "a"}
    whole = attach_labels(members, "cls", unlabeled="drop")
    assert whole.equals(attach_labels(members, "cls"))
    none = attach_labels(members, labels_csv(tmp_path, "key,label\nx,a\n"), unlabeled="drop")
    assert len(none) == 0 and none.schema == whole.schema


def test_labels_of_no_images_are_text_too(members):
    assert attach_labels(members.slice(0, 0), "cls").schema.field("label").type == pa.string()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "cat"], ["10", "9", "cat"]),
        (["b", "a", "b"], ["a", "b"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
        (["7", "007", "07"], ["007", "07", "7"]),
        (["-", "1"], ["-", "1"]),
        ([], []),
    ],
)
def test_class_names_in_order(labels, expected):
    assert class_names(labels) == expected
    assert class_names(labels[::-1]) == expected


def test_class_names_do_not_depend_on_the_process():
    code = "from coreset_ray.io.labels import class_names; print(class_names(['7', '007', '07']))"
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(3)
    }
    assert len(answers) == 1
