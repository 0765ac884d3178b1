"""The table of faults in the README (Reliability): each row has its tests, and what can be shown on
one shard file or one image is shown here."""

import gzip
import hashlib
import io
import os
import re
import resource
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pools
import pytest
import ray
from PIL import Image, ImageChops

from coreset_ray.config import load
from coreset_ray.core.pool import check_finite
from coreset_ray.distributed.attempts import MOST, Attempts, given_up
from coreset_ray.io.export import export_key, find_members, write_shard
from coreset_ray.io.filesystem import locate
from coreset_ray.io.full_disk import FullDisk
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.shards import REPEATED, Shard, ShardError, list_shards, read_samples
from coreset_ray.io.tables import part_name, uid_of
from pipelines.inputs import pool_table

TESTS = Path(pools.__file__).parent
README = TESTS.parent / "README.md"

# Each row of the table, and the tests that show what it says; one without a file is below.
ROWS = {
    "truncated tar": [
        "test_a_truncated_tar_keeps_its_whole_samples",
        "test_embed.py::test_a_cut_shard_keeps_its_whole_samples",
    ],
    "corrupt tar header": ["test_a_corrupt_header_keeps_the_samples_before_it"],
    "shard of zero bytes, gzip named .tar": [
        "test_a_shard_of_zero_bytes_is_named",
        "test_gzip_named_tar_is_named",
        "test_embed.py::test_a_shard_that_is_no_tar_file",
    ],
    "empty shard": [
        "test_an_empty_shard_holds_nothing_and_is_no_fault",
        "test_embed.py::test_a_shard_without_images",
    ],
    "100,000 members": ["test_100_000_members_are_read_as_a_stream_in_bounded_memory"],
    "a key twice in a shard": [
        "test_of_a_key_that_comes_twice_the_first_sample_counts",
        "test_embed.py::test_a_key_that_comes_twice_means_its_first_image",
    ],
    "a key in two shards": ["test_a_key_in_two_shards_is_two_images"],
    "keys with dots": ["test_a_key_ends_at_the_first_dot_of_the_base_name"],
    "keys with slashes, spaces, non-ASCII": ["test_odd_keys_are_kept_as_they_are"],
    "keys with `..`, a leading slash, a backslash, 300 characters": [
        "test_keys_that_are_unsafe_as_paths_are_exported_under_their_uid",
        "test_export_files.py::test_an_exported_shard_unpacks_inside_its_folder",
    ],
    "image of zero bytes, truncated, text named .jpg": [
        "test_what_is_no_whole_image_has_a_reason",
        "test_embed.py::test_bad_images_are_set_aside_with_their_reasons",
    ],
    "20,000 × 20,000": ["test_20_000_by_20_000_is_refused_by_its_header"],
    "CMYK": ["test_cmyk_is_converted", "test_inverted_cmyk_of_adobe_is_converted"],
    "16-bit": ["test_16_bits_are_scaled_not_clipped", "test_16_bits_a_color_are_scaled"],
    "32-bit, floating point": ["test_numbers_beyond_16_bits_are_refused"],
    "palette": ["test_a_palette_is_converted_and_what_is_transparent_keeps_its_color"],
    "alpha": ["test_alpha_is_dropped"],
    "animated": ["test_of_an_animation_the_first_frame"],
    "EXIF-rotated": ["test_what_a_camera_turned_is_turned_upright"],
    "1 × 1": ["test_one_pixel_is_an_image"],
    "wrong extension": ["test_an_image_is_decoded_by_its_content"],
    "NaN or infinity in an embedding": [
        "test_an_embedding_that_is_not_finite_is_refused_with_its_row",
        "test_embed.py::test_embeddings_that_are_no_numbers_are_set_aside",
    ],
    "disk full": ["test_a_full_disk_is_named_and_nothing_is_half_written"],
    "worker killed for want of memory": [
        "test_what_kills_five_processes_is_given_up_with_what_to_lower",
        "test_memory_kills.py::test_what_ray_kills_for_want_of_memory_is_done_again",
    ],
    "node too small for a run": [
        "test_memory_kills.py::test_nothing_but_kills_ends_a_run_and_anything_done_between_does_not",
        "test_memory_kills.py::test_a_run_on_a_node_that_is_too_small_ends_and_says_so",
    ],
    "clock that jumps": [
        "test_a_shard_whose_time_or_size_changes_is_another_part",
        "test_embed.py::test_new_and_changed_shards_are_embedded_and_nothing_else",
    ],
    "configuration changed in mid-run": [
        "test_another_configuration_has_another_folder_and_the_same_one_its_own",
    ],
    "code in a shard": ["test_code_in_a_shard_is_copied_as_bytes"],
}


def rows_of_the_readme():
    """The first column of the table of faults."""
    _, _, rest = README.read_text("utf-8").partition("| fault | what happens |\n|---|---|\n")
    lines = rest.split("\n\n")[0].splitlines()
    return [line.strip("| ").split(" | ")[0] for line in lines]


def test_every_row_of_the_table_has_its_tests_and_no_test_is_of_none():
    rows = rows_of_the_readme()
    assert len(rows) > 20 and len(rows) == len(set(rows))
    assert rows == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_that_are_named_exist(row):
    assert ROWS[row]
    for name in ROWS[row]:
        file, _, test = name.rpartition("::")
        if file:
            assert re.search(rf"^def {test}\(", (TESTS / file).read_text("utf-8"), re.M), name
        else:
            assert callable(getattr(sys.modules[__name__], test)), name


# --- shards ----------------------------------------------------------------------------------


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path):
    """Samples of a shard on disk as (key, members, repeated), and why there are no more."""
    (shard,) = list_shards([str(path)])
    found = []
    with locate(shard.uri).open_stream() as stream:
        try:
            for s in read_samples(stream, shard.size):
                found.append((s.key, {e: m.data for e, m in s.members.items()}, s.repeated))
        except ShardError as error:
            return found, str(error)
    return found, None


SAMPLES = [(f"{i}", {"png": bytes([i]) * 700, "cls": b"%d" % i}, False) for i in range(6)]
MEMBERS = [(f"{key}.{e}", data) for key, members, _ in SAMPLES for e, data in members.items()]
SAMPLE_BYTES = 512 + 1024 + 512 + 512  # header and blocks of the image, and of the label


@pytest.fixture
def shard(tmp_path):
    path = write_tar(tmp_path / "a.tar", MEMBERS)
    assert read(path) == (SAMPLES, None)
    return path


@pytest.mark.parametrize("cut", [1, 511, 512, 1000, 1536, 2047])
def test_a_truncated_tar_keeps_its_whole_samples(shard, cut):
    """The last one may have lost members, which nobody can tell."""
    os.truncate(shard, 3 * SAMPLE_BYTES + cut)
    samples, error = read(shard)
    assert samples == SAMPLES[:3] or (cut < 512 and samples == SAMPLES[:2]), cut
    assert error.startswith("ends early")


@pytest.mark.parametrize("place", [0, 100, 124, 148])
def test_a_corrupt_header_keeps_the_samples_before_it(shard, place):
    data = bytearray(shard.read_bytes())
    data[4 * SAMPLE_BYTES + place] ^= 0x15
    shard.write_bytes(data)
    samples, error = read(shard)
    assert samples == SAMPLES[: len(samples)] and len(samples) in (3, 4)
    assert error.startswith("not a whole tar file") and f"byte {4 * SAMPLE_BYTES}" in error


def test_a_shard_of_zero_bytes_is_named(tmp_path):
    (tmp_path / "a.tar").touch()
    assert read(tmp_path / "a.tar") == ([], "the file is empty")


def test_gzip_named_tar_is_named(shard):
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    samples, error = read(shard)
    assert samples == [] and error


def test_an_empty_shard_holds_nothing_and_is_no_fault(tmp_path):
    assert read(write_tar(tmp_path / "a.tar", [])) == ([], None)


@pytest.mark.parametrize("members", [4000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_100_000_members_are_read_as_a_stream_in_bounded_memory(members):
    """The stream is made as it is read: it is nowhere as a whole."""
    block = bytes([7]) * 512

    class Endless(io.RawIOBase):
        def __init__(self):
            self.chunks, self.rest = self.made(), b""

        def made(self):
            for i in range(members):
                info = tarfile.TarInfo(f"{i // 2:06d}.{('png', 'cls')[i % 2]}")
                info.size = 512
                yield info.tobuf(tarfile.USTAR_FORMAT) + block
            yield bytes(1024)

        def readable(self):
            return True

        def read(self, size=-1):
            parts, have = [self.rest], len(self.rest)
            while have < size and (chunk := next(self.chunks, b"")):
                parts.append(chunk)
                have += len(chunk)
            data = b"".join(parts)
            self.rest = data[size:]
            return data[:size]

    before, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for sample in read_samples(Endless(), members * 1024 + 1024, "png".__eq__):
        assert sample.key == f"{count:06d}" and sample.members["png"].data == block
        assert sample.members["cls"].data is None
        count += 1
    assert count == members // 2
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 40 << 10, f"{grown >> 10} MiB; the headers alone would be more than 100"


def test_of_a_key_that_comes_twice_the_first_sample_counts(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("k.png", b"1"), ("j.png", b"2"), ("k.png", b"3")])
    assert read(path)[0] == [
        ("k", {"png": b"1"}, False),
        ("j", {"png": b"2"}, False),
        ("k", {"png": b"3"}, True),
    ]
    (one,) = find_members(list_shards([str(path)])[0], ["k"]).to_pylist()
    assert path.read_bytes()[one["offset"] : one["offset"] + one["size"]] == b"1"
    assert "seen before" in REPEATED


def test_a_key_in_two_shards_is_two_images():
    names = [("a.tar", "k"), ("b.tar", "k"), ("a.tar", "j")]
    uids = [uid_of(*name) for name in names]
    assert len(set(uids)) == 3
    exported = [export_key(*name, uid) for name, uid in zip(names, uids, strict=True)]
    assert exported == ["a/k", "b/k", "a/j"]


def test_a_key_ends_at_the_first_dot_of_the_base_name(tmp_path):
    members = [("a.b.png", b"mask"), ("a.png", b"image"), ("v1.0/c.d.png", b"x")]
    samples, _ = read(write_tar(tmp_path / "a.tar", members))
    assert samples == [
        ("a", {"b.png": b"mask", "png": b"image"}, False),
        ("v1.0/c", {"d.png": b"x"}, False),
    ]
    (row,) = [
        row
        for row in find_members(list_shards([str(tmp_path / "a.tar")])[0], ["a"]).to_pylist()
        if row["image"]
    ]
    assert row["extension"] == "png"


@pytest.mark.parametrize("key", ["deep/er/k", "a key  with spaces", "größe", "東京/猫", "🙂"])
def test_odd_keys_are_kept_as_they_are(tmp_path, key):
    path = write_tar(tmp_path / "a.tar", [(f"{key}.png", b"1")])
    assert read(path) == ([(key, {"png": b"1"}, False)], None)
    assert export_key("a.tar", key, "uid").endswith(f"/{key}")


@pytest.mark.parametrize(
    "key", ["../k", "a/../k", "/etc/k", "a//k", "a\\k", "C:\\k", "./k", "n" * 300, "ü" * 150]
)
def test_keys_that_are_unsafe_as_paths_are_exported_under_their_uid(tmp_path, key):
    path = write_tar(tmp_path / "a.tar", [(f"{key}.png", b"1"), (f"{key}.cls", b"2")])
    samples, error = read(path)
    assert samples == [(key, {"png": b"1", "cls": b"2"}, False)] and error is None
    (shard,) = list_shards([str(path)])
    uid = uid_of(shard.name, key)
    name = export_key(shard.name, key, uid)
    assert name == uid
    members = find_members(shard, [key])
    sha256 = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # of b"1"
    write_shard(locate(str(tmp_path / "out.tar")), [(name, members, sha256)])
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == [f"{uid}.png", f"{uid}.cls"]


def test_code_in_a_shard_is_copied_as_bytes(tmp_path):
    """A pickle that would leave a trace if anybody loaded it."""
    trace = tmp_path / "trace"
    code = f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()
    image = encoded(picture(), "PNG")
    members = [("k.png", image), ("k.pkl", code), ("k.pyd", code), ("k.py", b"raise SystemExit")]
    path = write_tar(tmp_path / "a.tar", members)
    found = find_members(list_shards([str(path)])[0], ["k"])
    out = tmp_path / "out.tar"
    write_shard(locate(str(out)), [("a/k", found, hashlib.sha256(image).hexdigest())])
    samples, error = read(out)
    assert error is None
    assert samples == [("a/k", {n.partition(".")[2]: data for n, data in members}, False)]
    with pytest.raises(BadImage):
        decode(code, 10**6)
    assert not trace.exists()


# --- images ----------------------------------------------------------------------------------


def picture(width=24, height=16):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def blocks():
    """Large areas of one color, which JPEG keeps."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16], pixels[:16, 16:] = (220, 30, 30), (30, 200, 40)
    pixels[16:, :16], pixels[16:, 16:] = (40, 40, 210), (240, 240, 240)
    return Image.fromarray(pixels)


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(data):
    image = decode(data, 10**6)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png(width, height, pixels=b"", depth=8, color=2):
    """By hand: its header may promise what is not there."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "zero bytes"),
        (b"<html>404 Not Found</html>", "known format"),
        (encoded(picture(64, 64), "JPEG")[:900], None),
        (encoded(picture(64, 64), "PNG")[:900], None),
        (encoded(picture(64, 64), "WEBP", lossless=True)[:900], None),
        (encoded(picture(64, 64), "BMP")[:900], None),
        (encoded(picture(64, 64), "TIFF")[:900], None),
    ],
    ids=["zero", "text", "jpeg", "png", "webp", "bmp", "tiff"],
)
def test_what_is_no_whole_image_has_a_reason(data, said):
    with pytest.raises(BadImage, match=said) as error:
        decode(data, 10**6)
    assert str(error.value)


def test_20_000_by_20_000_is_refused_by_its_header(monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(BadImage, match=r"more than .*50000000"):
        decode(png(20_000, 20_000), 50_000_000)
    with pytest.raises(BadImage, match="10000 × 5001 pixels, more than max_pixels = 50000000"):
        decode(png(10_000, 5001), 50_000_000)
    with pytest.raises(BadImage, match="decoded"):
        decode(png(10_000, 5000), 50_000_000)


def test_cmyk_is_converted():
    data = encoded(blocks().convert("CMYK"), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(decoded(data) - np.asarray(blocks())).max() <= 2


def test_inverted_cmyk_of_adobe_is_converted():
    """Adobe's marker says that the numbers are of light, not of ink: the same picture."""
    data = encoded(blocks().convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert b"Adobe" in data and Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(decoded(data) - np.asarray(blocks())).max() < 12
    ink = ImageChops.invert(blocks().convert("CMYK"))
    assert np.abs(decoded(encoded(ink, "JPEG", quality=98)) - np.asarray(blocks())).max() > 100


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(form):
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    answer = decoded(encoded(Image.fromarray(grey), form))
    np.testing.assert_array_equal(answer, np.repeat((grey >> 8)[..., None], 3, axis=2))


def test_16_bits_a_color_are_scaled():
    narrow = np.asarray(picture())
    rows = ((narrow.astype(np.uint16) << 8) | 0x5A).astype(">u2")
    data = png(24, 16, b"".join(b"\0" + row.tobytes() for row in rows), depth=16)
    np.testing.assert_array_equal(decoded(data), narrow)


@pytest.mark.parametrize(
    ("values", "good"),
    [
        (np.full((4, 4), 65535, np.int32), True),
        (np.full((4, 4), 65536, np.int32), False),
        (np.full((4, 4), -1, np.int32), False),
        (np.full((4, 4), 0.5, np.float32), False),
    ],
)
def test_numbers_beyond_16_bits_are_refused(values, good):
    data = encoded(Image.fromarray(values), "TIFF")
    if good:
        assert (decoded(data) == 255).all()
        return
    with pytest.raises(BadImage, match="no known range"):
        decode(data, 10**6)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(200))])
def test_a_palette_is_converted_and_what_is_transparent_keeps_its_color(transparency):
    image = picture().quantize(200)
    options = {} if transparency is None else {"transparency": transparency}
    answer = decoded(encoded(image, "PNG", **options))
    np.testing.assert_array_equal(answer, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_alpha_is_dropped(form):
    image = picture()
    image.putalpha(Image.new("L", image.size, 0))
    np.testing.assert_array_equal(decoded(encoded(image, form)), np.asarray(picture()))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(form):
    options = {"lossless": True} if form == "WEBP" else {}
    others = [ImageChops.invert(picture()), Image.new("RGB", picture().size)]
    data = encoded(picture(), form, save_all=True, append_images=others, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(decoded(data), np.asarray(picture()))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
    ],
)
def test_what_a_camera_turned_is_turned_upright(orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture().transpose(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(decoded(data), np.asarray(picture()))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_one_pixel_is_an_image(form):
    answer = decoded(encoded(Image.new("RGB", (1, 1), (90, 90, 90)), form))
    assert answer.shape == (1, 1, 3) and np.abs(answer - 90).max() <= 3


def test_an_image_is_decoded_by_its_content(tmp_path):
    data = encoded(picture(), "PNG")
    path = write_tar(tmp_path / "a.tar", [("k.jpg", data)])
    with path.open("rb") as stream:
        (sample,) = read_samples(stream, path.stat().st_size)
    np.testing.assert_array_equal(decoded(sample.image().data), np.asarray(picture()))


# --- what is around them ---------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_an_embedding_that_is_not_finite_is_refused_with_its_row(value):
    z = np.zeros((9, 4))
    check_finite(z)
    z[6, 2] = value
    with pytest.raises(ValueError, match=r"row 106 .*\(1 such"):
        check_finite(z, first=100)


@pytest.fixture
def no_room():
    """No file of this process may be longer than a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_nothing_is_half_written(tmp_path, no_room):
    place = locate(str(tmp_path / "sub" / "file"))
    with pytest.raises(FullDisk, match="make room") as error, place.replacing() as sink:
        sink.write(bytes(2 << 20))
    assert str(tmp_path / "sub" / "file") in str(error.value)
    assert list((tmp_path / "sub").iterdir()) == [], "not even what was begun"
    with place.replacing() as sink:
        sink.write(b"small enough")
    with pytest.raises(FullDisk), place.replacing() as sink:
        sink.write(bytes(2 << 20))
    assert (tmp_path / "sub" / "file").read_bytes() == b"small enough"


def test_what_kills_five_processes_is_given_up_with_what_to_lower(monkeypatch):
    class Begin:
        def __init__(self, counter):
            self.remote = counter.begin

    counter = Attempts.__ray_metadata__.modified_class()
    actor = type("Actor", (), {"begin": Begin(counter)})()
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    assert MOST == 5
    told = [given_up(actor, "read a.tar", "its reader", "lower it") for _ in range(6)]
    assert told[:5] == [""] * 5
    assert told[5].startswith("its reader was killed or lost 5 times") and "lower it" in told[5]
    assert given_up(actor, "read b.tar", "its reader", "lower it") == "", "others go on"
    counter.succeeded("read a.tar")
    assert given_up(actor, "read a.tar", "its reader", "lower it") == ""


def test_a_shard_whose_time_or_size_changes_is_another_part():
    """Times are compared with no clock: earlier is as different as later."""
    one = Shard("a.tar", "/pool/a.tar", 10, 1000)
    others = [
        Shard("a.tar", "/pool/a.tar", size, t) for size, t in [(10, 1), (10, 2000), (9, 1000)]
    ]
    names = [part_name(shard) for shard in [one, *others]]
    assert len(set(names)) == 4
    assert part_name(Shard("a.tar", "/pool/a.tar", 10, 1000)) == names[0]


def test_another_configuration_has_another_folder_and_the_same_one_its_own(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    write_tar(pool / "a.tar", MEMBERS)
    path = pools.write_config(tmp_path, pool)
    folder = pool_table(load(path)).stage.folder.path
    other = pool_table(load(path, ["embed.dtype=float16"])).stage.folder.path
    assert other != folder and Path(other).parent == Path(folder).parent
    assert pool_table(load(path)).stage.folder.path == folder
    assert pool_table(load(path, ["compute.batch_size=3"])).stage.folder.path == folder
