"""Shard lists, and the samples of a tar file read as a stream: whole, or an error that says so."""

import io
import random
import re
import tarfile
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coreset_ray.io.filesystem import locate
from coreset_ray.io.shards import ShardError, list_shards, read_samples

BLOCK = 512


def tar_of(members, format=tarfile.PAX_FORMAT):
    """members: (name, bytes) pairs, or TarInfo for members without bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def read(data, **options):
    return list(read_samples(io.BytesIO(data), len(data), **options))


def read_until_error(data):
    """The samples before the error, and the error's text, empty when there was none."""
    samples = []
    try:
        for sample in read_samples(io.BytesIO(data), len(data)):
            samples.append(sample)
    except ShardError as error:
        return samples, str(error)
    return samples, ""


def plain(samples):
    return [(s.key, {e: m.data for e, m in s.members.items()}, s.repeated) for s in samples]


SMALL = [
    ("a.jpg", b"\x01" * 700),
    ("a.cls", b"3"),
    ("b.jpg", b"\x02" * 512),
    ("b.seg.png", b"\x03" * 513),
    ("b.cls", b""),
    ("c.jpg", b"\x04" * 1300),
    ("c.cls", b"5"),
]


# --- lists -----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    for name in ("x/0.tar", "x/1.tar", "x/10.tar", "x/deep/2.tar", "y/0.tar", "y/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(tar_of([(f"{name[0]}.jpg", name.encode())]))
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("x/0.tar", ["0.tar"]),
        ("x", ["0.tar", "1.tar", "10.tar", "deep/2.tar"]),
        ("x/", ["0.tar", "1.tar", "10.tar", "deep/2.tar"]),
        ("x/*.tar", ["0.tar", "1.tar", "10.tar"]),
        ("x/?.tar", ["0.tar", "1.tar"]),
        ("x/[0-9].tar", ["0.tar", "1.tar"]),
        ("x/[!0].tar", ["1.tar"]),
        ("x/**/*.tar", ["0.tar", "1.tar", "10.tar", "deep/2.tar"]),
        ("x/*/*.tar", ["deep/2.tar"]),
        ("*/0.tar", ["x/0.tar", "y/0.tar"]),
        ("x/{0..1}.tar", ["0.tar", "1.tar"]),
        ("x/{1,10}.tar", ["1.tar", "10.tar"]),
        ("x/deep/../0.tar", ["0.tar"]),
    ],
)
def test_an_entry_names_its_shards(tree, entry, names):
    assert [s.name for s in list_shards([f"{tree}/{entry}"])] == names


def test_a_shard_tells_size_time_and_a_uri_that_opens(tree):
    (shard,) = list_shards([f"{tree}/x/10.tar"])
    file = tree / "x/10.tar"
    assert shard.uri == str(file)
    assert (shard.size, shard.mtime_ns) == (file.stat().st_size, file.stat().st_mtime_ns)


def test_relative_entries_and_file_uris(tree, monkeypatch):
    monkeypatch.chdir(tree)
    absolute = list_shards([f"{tree}/x/*.tar"])
    assert list_shards(["x/*.tar"]) == absolute == list_shards([f"file://{tree}/x/*.tar"])
    assert [s.name for s in list_shards(["*/0.tar"])] == ["x/0.tar", "y/0.tar"]


def test_names_relative_to_root(tree):
    shards = list_shards([f"{tree}/x", f"{tree}/y/*.tar"], root=str(tree))
    expected = ["x/0.tar", "x/1.tar", "x/10.tar", "x/deep/2.tar", "y/0.tar"]
    assert [s.name for s in shards] == expected
    assert list_shards([str(tree)]) == shards


def test_a_list_may_mix_everything_and_have_comments(tree):
    (tree / "pool.txt").write_text(f"# ours\n\n  {tree}/x/{{0..1}}.tar \n{tree}/x/deep\n")
    shards = list_shards([f"@{tree}/pool.txt", f"{tree}/x/1?.tar"])
    assert [s.name for s in shards] == ["0.tar", "1.tar", "10.tar", "2.tar"]


def test_the_order_of_entries_does_not_matter_and_twice_is_once(tree):
    entries = [f"{tree}/x/deep", f"{tree}/x/10.tar", f"{tree}/x/{{0..1}}.tar", f"{tree}/x/*.tar"]
    expected = list_shards(entries)
    assert [s.name for s in expected] == ["0.tar", "1.tar", "10.tar", "2.tar"]
    for seed in range(6):
        assert list_shards(random.Random(seed).sample(entries, len(entries))) == expected


def test_two_shards_of_one_name_are_refused_with_the_remedy(tree):
    with pytest.raises(ValueError, match=r"pool\.root") as error:
        list_shards([f"{tree}/x/0.tar", f"{tree}/y/0.tar"])
    assert f"{tree}/x/0.tar" in str(error.value) and f"{tree}/y/0.tar" in str(error.value)
    shards = list_shards([f"{tree}/x/0.tar", f"{tree}/y/0.tar"], root=str(tree))
    assert [s.name for s in shards] == ["x/0.tar", "y/0.tar"]


@pytest.mark.parametrize(
    "entry",
    [
        "x/7.tar",
        "nowhere",
        "nowhere/*.tar",
        "x/7*.tar",
        "empty",
        "x/{6..7}.tar",
        "y/*.txt.tar",
        "dangling.tar",
        "x/[z-a].tar",
        "x/[a\\].tar",
        "x/[[:alpha:]].tar",
    ],
)
def test_an_entry_that_names_nothing_is_named(tree, entry):
    (tree / "empty").mkdir()
    (tree / "dangling.tar").symlink_to(tree / "gone")
    stem = entry.replace("{6..7}", "6")
    with pytest.raises(ValueError, match=re.escape(stem).replace(r"\\", r"\\+")):
        list_shards([f"{tree}/{entry}"])


@pytest.mark.parametrize("name", ["missing.txt", "x"])
def test_a_list_that_is_no_file_is_named(tree, name):
    with pytest.raises(ValueError, match=f"list .*{name}"):
        list_shards([f"@{tree}/{name}"])


def test_a_shard_outside_root_is_refused(tree):
    with pytest.raises(ValueError, match=r"pool\.root") as error:
        list_shards([f"{tree}/x/0.tar"], root=f"{tree}/y")
    assert "x/0.tar" in str(error.value)
    with pytest.raises(ValueError, match=r"pool\.root"):
        list_shards([f"{tree}/x/0.tar"], root=f"{tree}/x/0")


# --- samples ---------------------------------------------------------------------------------


def test_members_of_one_key_are_one_sample():
    samples = read(tar_of(SMALL))
    assert plain(samples) == [
        ("a", {"jpg": b"\x01" * 700, "cls": b"3"}, False),
        ("b", {"jpg": b"\x02" * 512, "seg.png": b"\x03" * 513, "cls": b""}, False),
        ("c", {"jpg": b"\x04" * 1300, "cls": b"5"}, False),
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_the_webdataset_library_reads(tmp_path, format):
    import webdataset as wds

    members = [*SMALL, ("v1.0/dir.x/d.JPG", b"d"), ("v1.0/dir.x/d.json", b"{}"), ("e.txt", b"e")]
    path = tmp_path / "s.tar"
    path.write_bytes(tar_of(members, format))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library leaves its file open
        theirs = [
            (s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")})
            for s in wds.WebDataset(str(path), shardshuffle=False)
        ]
    ours = [(key, members) for key, members, _ in plain(read(path.read_bytes()))]
    assert ours == theirs and len(ours) == 5


@pytest.mark.parametrize("name", ["k.jpg", "k.JPG", "k.Jpeg", "k.webp", "k.TIFF", "d.d/k.png"])
def test_an_image_by_its_extension_in_any_case(name):
    (sample,) = read(tar_of([("k.txt", b"t"), (name, b"i")][name.startswith("d") :]))
    assert sample.image().data == b"i"
    assert sample.key == name.rpartition(".")[0]


def test_a_sidecar_that_ends_in_png_is_not_the_image():
    (sample,) = read(tar_of([("k.seg.png", b"mask"), ("k.png", b"image"), ("k.jpg", b"second")]))
    assert sample.image().data == b"image"
    (alone,) = read(tar_of([("k.seg.png", b"mask")]))
    assert alone.image() is None


def test_what_is_no_member_of_a_sample_is_passed_over():
    def special(name, kind, target=""):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info

    odd = [
        special("folder.jpg", tarfile.DIRTYPE),
        special("link.jpg", tarfile.SYMTYPE, "a.jpg"),
        special("hard.jpg", tarfile.LNKTYPE, "a.jpg"),
        special("pipe.jpg", tarfile.FIFOTYPE),
        ("README", b"no extension"),
        ("__MACOSX/._a.jpg", b"resource fork"),
        (".hidden.jpg", b"h"),
        ("folder.d/README", b"r"),
        ("trailing.", b"t"),
    ]
    assert plain(read(tar_of([*odd, *SMALL]))) == plain(read(tar_of(SMALL)))
    assert plain(read(tar_of([*SMALL, *odd]))) == plain(read(tar_of(SMALL)))
    assert read(tar_of(odd)) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "a.jpg"], [("a", False), ("a", True)]),
        (["a.jpg", "b.jpg", "a.jpg"], [("a", False), ("b", False), ("a", True)]),
        (["a.jpg", "b.jpg", "a.cls"], [("a", False), ("b", False), ("a", True)]),
        (["a.jpg", "a.JPG"], [("a", False), ("a", True)]),
        (["d/a.jpg", "e/a.jpg"], [("d/a", False), ("e/a", False)]),
        (["a.jpg"] * 3, [("a", False), ("a", True), ("a", True)]),
    ],
)
def test_a_key_seen_before_is_marked(names, expected):
    samples = read(tar_of([(name, str(i).encode()) for i, name in enumerate(names)]))
    assert [(s.key, s.repeated) for s in samples] == expected
    contents = [m.data for s in samples for m in s.members.values()]
    assert contents == [str(i).encode() for i in range(len(names))]  # nothing lost, none replaced


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_point_at_the_bytes(format):
    data = tar_of(
        [*SMALL, ("d" * 120 + "/" + "n" * 300 + ".jpg", b"long"), ("ü.jpg", b"u")], format
    )
    members = [m for s in read(data) for m in s.members.values()]
    assert len(members) == len(SMALL) + 2
    for member in members:
        assert data[member.offset : member.offset + member.size] == member.data


def test_only_the_bytes_to_keep_are_kept():
    whole = read(tar_of(SMALL))
    some = read(tar_of(SMALL), keep=lambda extension: extension == "cls")
    for a, b in zip(whole, some, strict=True):
        for extension, member in a.members.items():
            other = b.members[extension]
            assert (member.offset, member.size) == (other.offset, other.size)
            assert other.data == (member.data if extension == "cls" else None)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(format):
    keys = ["n" * 300, "ordner/größe 東京", "a/" * 60 + "x"]
    samples = read(tar_of([(f"{key}.jpg", b"x") for key in keys], format))
    assert [s.key for s in samples] == keys


def test_names_that_are_not_utf8_become_text_that_stays_apart():
    names = [b"caf\xe9.jpg", b"caf\xe8.jpg"]
    data = tar_of([(n.decode("utf-8", "surrogateescape"), b"x") for n in names], tarfile.GNU_FORMAT)
    assert names[0] in data, "the shard holds the raw bytes"
    keys = [s.key for s in read(data)]
    assert keys == ["caf\\xe9", "caf\\xe8"]
    assert all(key.encode("utf-8") for key in keys)


def test_five_thousand_members():
    data = tar_of([(f"{i:05d}.{e}", b"%d" % i) for i in range(2500) for e in ("jpg", "cls")])
    samples = read(data)
    assert [s.key for s in samples] == [f"{i:05d}" for i in range(2500)]
    assert all(s.members["cls"].data == b"%d" % i for i, s in enumerate(samples))


# --- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"not a tar file\n", "ends early"),
        (b"not a tar file\n" * 1000, "not a whole tar file"),
        (b"\x1f\x8b\x08\x00" + bytes(range(256)) * 40, "not a whole tar file"),
    ],
)
def test_what_is_no_tar_file(data, reason):
    samples, error = read_until_error(data)
    assert samples == [] and error.startswith(reason)


def test_a_compressed_shard_is_refused():
    import gzip

    samples, error = read_until_error(gzip.compress(tar_of(SMALL)))
    assert samples == [] and error


def test_an_empty_archive_has_no_samples():
    assert read(tar_of([])) == []


def _end_of_members(data):
    """Where the first block of the end mark begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // BLOCK) * BLOCK


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_cut_anywhere_it_yields_whole_samples_and_an_error(format):
    data = tar_of([*SMALL, ("l" * 130 + ".jpg", b"long")], format)
    whole = plain(read(data))
    end = _end_of_members(data)
    cuts = {*range(0, len(data), BLOCK), *range(7, len(data), 331), end - 1, end + 1, len(data) - 1}
    for cut in sorted(cuts):
        samples, error = read_until_error(data[:cut])
        assert plain(samples) == whole[: len(samples)], cut
        assert len(samples) == len(whole) if cut >= end + BLOCK else len(samples) < len(whole), cut
        assert bool(error) == (cut < end + BLOCK), cut
        if cut:
            assert "ends early" in error or cut >= end + BLOCK, (cut, error)


def test_without_the_end_mark_the_last_sample_may_lack_members():
    data = tar_of(SMALL)
    samples, error = read_until_error(data[: _end_of_members(data)])
    assert [s.key for s in samples] == ["a", "b"]  # c may have had more sidecars
    assert "ends early" in error


@pytest.mark.parametrize("kind", ["checksum", "random", "zeros"])
@pytest.mark.parametrize("number", range(1, len(SMALL)))
def test_a_broken_header_in_mid_file_is_an_error_not_the_end(kind, number):
    data = tar_of(SMALL)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = tar.getmembers()[number].offset
    header = {
        "checksum": data[at : at + 148] + b"0000000\0" + data[at + 156 : at + BLOCK],
        "random": random.Random(number).randbytes(BLOCK),
        "zeros": bytes(BLOCK),  # a hole, which reads like the end mark
    }[kind]
    samples, error = read_until_error(data[:at] + header + data[at + BLOCK :])
    assert error
    assert plain(samples) == plain(read(data))[: len(samples)]
    assert len(samples) >= {"a": 0, "b": 0, "c": 1}[SMALL[number][0][0]]


def test_a_second_archive_behind_the_first_is_not_lost_in_silence():
    samples, error = read_until_error(tar_of(SMALL) + tar_of([("z.jpg", b"z")]))
    assert plain(samples) == plain(read(tar_of(SMALL)))[: len(samples)]
    assert "end-of-archive" in error


@pytest.mark.parametrize("name", ["z.jpg", "README"])
def test_a_size_beyond_all_bounds_ends_at_once(name):
    info = tarfile.TarInfo(name)
    info.size = 2**62
    data = tar_of(SMALL)
    end = _end_of_members(data)
    bad = data[:end] + info.tobuf(tarfile.GNU_FORMAT) + bytes(20 * BLOCK)
    samples, error = read_until_error(bad)
    assert [s.key for s in samples][:2] == ["a", "b"] and "ends early" in error


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=3000))
def test_random_bytes_raise_nothing_else(data):
    samples, error = read_until_error(data)
    assert error or not samples


_BASE = tar_of([*SMALL, ("é" * 80 + ".jpg", b"pax"), ("p" * 120 + ".jpg", b"long")])
_PLACES = st.one_of(
    st.integers(0, len(_BASE) - 1),
    st.tuples(st.integers(0, len(_BASE) // BLOCK - 1), st.integers(100, 160)).map(
        lambda place: place[0] * BLOCK + place[1]
    ),
)


@settings(max_examples=300, deadline=5000)
@given(st.lists(st.tuples(_PLACES, st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_a_damaged_shard_raises_nothing_else(changes, mend):
    data = bytearray(_BASE)
    for place, value in changes:
        data[place] = value
        if mend:  # a header whose checksum is right gets further into the library
            at = place // BLOCK * BLOCK
            total = sum(data[at : at + BLOCK]) - sum(data[at + 148 : at + 156]) + 8 * ord(" ")
            data[at + 148 : at + 156] = b"%06o\0 " % total
    for sample in read_until_error(bytes(data))[0]:
        assert sample.key.encode("utf-8")
        for member in sample.members.values():
            assert data[member.offset : member.offset + member.size] == member.data


def test_a_malformed_pax_record_is_a_fault_of_the_shard(tmp_path):
    path = tmp_path / "pax.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"GNU.sparse.map": "x,y"}
        tar.addfile(info, io.BytesIO(b""))
    with path.open("rb") as stream, pytest.raises(ShardError, match="bad header"):
        list(read_samples(stream, path.stat().st_size))


def test_only_the_members_asked_for_are_read(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.npy"):
            info = tarfile.TarInfo(name)
            info.size = 1000
            tar.addfile(info, io.BytesIO(bytes(1000)))
    monkeypatch.setattr("coreset_ray.io.shards.MEMBER_BYTES", 999)
    with path.open("rb") as stream:
        (sample,) = read_samples(stream, path.stat().st_size, {"jpg"}.__contains__)
    assert [m.data for m in sample.members.values()] == [None, None]
    monkeypatch.setattr("coreset_ray.io.shards.MEMBER_BYTES", 1000)
    with path.open("rb") as stream:
        (sample,) = read_samples(stream, path.stat().st_size, {"jpg"}.__contains__)
    assert [m.data for m in sample.members.values()] == [bytes(1000), None]


def test_a_compressed_shard_is_refused_not_unpacked(tmp_path):
    """Its members could not be found by offset later."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 1000
        tar.addfile(info, io.BytesIO(bytes(1000)))
    (shard,) = list_shards([str(tmp_path / "a.tar.gz")])
    with locate(shard.uri).open_stream() as stream, pytest.raises(ShardError, match="at byte 0"):
        list(read_samples(stream, shard.size))
