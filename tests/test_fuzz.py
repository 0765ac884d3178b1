"""Damaged shards, damaged images and arbitrary configurations: an answer or the one error that is
promised, never another."""

import io
import tarfile
from functools import partial

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coreset_ray.config import Config, load
from coreset_ray.io.images import BadImage, decode
from coreset_ray.io.shards import ShardError, read_samples

MOST = 40_000  # pixels

few = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# --- damage ----------------------------------------------------------------------------------

_PLACE = st.floats(0, 0.9999)
_CHANGE = st.one_of(
    st.tuples(st.just("set"), _PLACE, st.integers(0, 255)),
    st.tuples(st.just("flip"), _PLACE, st.integers(0, 7)),
    st.tuples(st.just("insert"), _PLACE, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("delete"), _PLACE, st.integers(1, 600)),
    st.tuples(st.just("repeat"), _PLACE, st.integers(1, 1200)),
    st.tuples(st.just("zero"), _PLACE, st.integers(1, 600)),
    st.tuples(st.just("cut"), _PLACE, st.just(0)),
)
CHANGES = st.lists(_CHANGE, min_size=1, max_size=4)


def damaged(data, changes, *, early=1):
    """The bytes with each change made in turn. early: how far places crowd at the start."""
    for kind, share, what in changes:
        at = int(share**early * len(data))
        if kind == "set":
            data = data[:at] + bytes([what]) + data[at + 1 :]
        elif kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << what]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + what :]
        elif kind == "repeat":
            data = data[: at + what] + data[at:]
        elif kind == "zero":
            hole = len(data[at : at + what])
            data = data[:at] + bytes(hole) + data[at + hole :]
        elif kind == "cut":
            data = data[:at]
    return data


# --- shards ----------------------------------------------------------------------------------

MEMBERS = [
    ("a.jpg", b"\x01" * 700),
    ("a.cls", b"3"),
    ("folder/b.png", b"\x02" * 512),
    ("folder/b.seg.png", b""),
    ("größe.jpg", b"\x03" * 513),
    ("n" * 130 + ".jpg", b"\x04" * 40),
    ("a.jpg", b"again"),
    ("z.webp", bytes(range(256)) * 5),
]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar_of(members, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            if form == tarfile.USTAR_FORMAT and len(name) > 100:
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


TARS = {name: tar_of(MEMBERS, form) for name, form in FORMATS.items()}


def read(data):
    """The samples, and the reason why there are no more of them, if that is not the end."""
    found = []
    try:
        for sample in read_samples(io.BytesIO(data), len(data)):
            found.append(sample)
    except ShardError as error:
        return found, str(error)
    return found, None


def check_samples(samples, data):
    """Each is whole, is where it says, and knows whether its key was there before."""
    seen, end = set(), 0
    for sample in samples:
        assert sample.key and sample.key.encode("utf-8")
        assert sample.members and sample.repeated == (sample.key in seen)
        seen.add(sample.key)
        for extension, member in sample.members.items():
            assert extension == extension.lower()
            assert member.name.lower().endswith(f".{extension}")
            assert len(member.data) == member.size
            assert data[member.offset : member.offset + member.size] == member.data
            assert member.offset >= end, "members lie one after another"
            end = member.offset + member.size


@pytest.mark.parametrize("form", FORMATS)
def test_an_undamaged_shard_gives_all_its_samples(form):
    samples, error = read(TARS[form])
    check_samples(samples, TARS[form])
    assert error is None
    told = [(m.name, m.data) for s in samples for m in s.members.values()]
    assert told == [m for m in MEMBERS if form != "ustar" or len(m[0]) <= 100]


@few
@given(st.sampled_from(sorted(FORMATS)), CHANGES)
def test_a_damaged_shard_gives_whole_samples_or_a_shard_error(form, changes):
    data = damaged(TARS[form], changes)
    samples, error = read(data)
    check_samples(samples, data)
    assert error is None or error


@few
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.tuples(_PLACE, st.binary(max_size=12))))
def test_damaged_headers_with_a_right_checksum_give_no_other_error(form, changes):
    data = bytearray(TARS[form])
    for share, value in changes:
        block = int(share * len(data)) // 512 * 512
        at = block + int(share * 7919) % (512 - len(value))
        data[at : at + len(value)] = value
        total = sum(data[block : block + 512]) - sum(data[block + 148 : block + 156]) + 256
        data[block + 148 : block + 156] = b"%06o\0 " % total
    data = bytes(data)
    check_samples(read(data)[0], data)


@few
@given(st.sampled_from(sorted(FORMATS)), _PLACE)
def test_a_cut_shard_gives_the_first_samples_of_the_whole_one(form, share):
    data = TARS[form]
    whole, _ = read(data)
    cut, error = read(data[: int(share * len(data))])
    assert cut == whole[: len(cut)]
    assert error is not None or len(cut) == len(whole)


@few
@given(st.binary(max_size=1500))
def test_bytes_that_are_no_shard_give_a_reason_or_nothing(data):
    samples, error = read(data)
    assert samples == [] and (error or data)


# --- images ----------------------------------------------------------------------------------


def picture(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(form, mode="RGB", **options):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(mode).save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


IMAGES = {
    "png": encoded("PNG"),
    "palette": encoded("PNG", "P"),
    "jpeg": encoded("JPEG"),
    "cmyk": encoded("JPEG", "CMYK"),
    "progressive": encoded("JPEG", progressive=True),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "lzw": encoded("TIFF", compression="tiff_lzw"),
    "webp": encoded("WEBP"),
    "lossless": encoded("WEBP", lossless=True),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_undamaged_image_is_decoded(name):
    image = decode(IMAGES[name], MOST)
    assert image.mode == "RGB" and set(image.size) == {19, 23}


@settings(few, max_examples=120)
@given(st.sampled_from(sorted(IMAGES)), CHANGES, st.sampled_from([1, 3]))
def test_a_damaged_image_is_an_image_or_bad(name, changes, early):
    check_image(damaged(IMAGES[name], changes, early=early))


def check_image(data):
    """An image within bounds, or bad for a reason of one line."""
    try:
        image = decode(data, MOST)
    except BadImage as error:
        assert str(error) and "\n" not in str(error)
        return
    assert image.mode == "RGB" and 0 < image.width * image.height <= MOST
    assert np.asarray(image).shape == (image.height, image.width, 3)


# --- configurations --------------------------------------------------------------------------

GOOD = {"workspace": "runs/x", "pool": {"shards": ["a.tar"]}, "select": {"budget": 0.1}}
SECTIONS = sorted(Config.model_fields)
KEYS = sorted(
    {
        key
        for field in Config.model_fields.values()
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
        for key in getattr(kind, "model_fields", {})
    }
)


@pytest.fixture(scope="module")
def read_config(tmp_path_factory):
    """Text → the configuration, or None where it is refused with a reason."""
    file = tmp_path_factory.mktemp("config") / "config.yaml"

    return partial(checked_config, file)


def checked_config(file, text, overrides=None):
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
    try:
        config = load(file, overrides)
    except ValueError as error:
        assert str(error)
        return None
    assert isinstance(config, Config)
    return config


def test_the_configuration_that_is_changed_below_is_read(read_config):
    assert read_config(yaml.safe_dump(GOOD)).select.budget == 0.1
    assert {"pool", "pretrain", "continual"} <= set(SECTIONS) and {"shards", "budget"} <= set(KEYS)


@few
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_a_configuration_or_refused(read_config, text):
    read_config(text)


_TOKENS = st.sampled_from(
    [
        *("a", "&x", "*x", "&y", "*y", "<<", ": ", ":\n  ", "\n", "- ", "[", "]", "{", "}", ", "),
        *("? ", "!!python/object:os.system ", "!!int ", "| \n", "> \n", "'", '"', "#", "---\n"),
        *("...\n", "%YAML 1.1\n", "1e400", "-0", ".nan", ".inf", "1:30", "0x1f", "~", "true"),
        *("\t", "\0", "\u2028", "\ufeff", "workspace: w\n", "pool: {shards: a.tar}\n"),
        *("select: {budget: 0.1}\n", "score: ", "embed: ", "compare: ", "evaluate: "),
    ]
)


@settings(few, max_examples=50)
@given(st.lists(_TOKENS, max_size=25).map("".join))
def test_any_tokens_of_yaml_are_a_configuration_or_refused(read_config, text):
    read_config(text)


_LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)),
    st.sampled_from(["auto", "random", "elfs", "pretrained", "cls", "s3://b/k?x=y", "@", "{", "["]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), below, max_size=3),
    ),
    max_leaves=6,
)


@settings(few, max_examples=50)
@given(st.dictionaries(st.sampled_from(SECTIONS), _VALUES, min_size=1, max_size=3))
def test_any_values_in_its_sections_are_a_configuration_or_refused(read_config, changes):
    read_config(yaml.safe_dump({**GOOD, **changes}, allow_unicode=True))


@few
@given(
    st.lists(st.sampled_from([*SECTIONS, *KEYS, "0", "", "x"]), max_size=4).map(".".join),
    st.one_of(st.text(max_size=12), st.sampled_from(["[", "{a: 1}", "&a [*a]", "null", "1e999"])),
)
def test_any_override_is_taken_or_refused(read_config, key, value):
    text = yaml.safe_dump(GOOD)
    read_config(text, [f"{key}={value}"])
    read_config(text, [key + value])


@settings(few, max_examples=20)
@given(
    st.sampled_from(SECTIONS),
    st.sampled_from(["[{}]", "{{a: {}}}", "- {}"]),
    st.sampled_from([1, 2, 20, 200, 3000]),
)
def test_deep_nesting_is_refused(read_config, section, level, depth):
    opening, closing = level.format("|").split("|")
    rest = {k: v for k, v in GOOD.items() if k != section}
    text = f"{yaml.safe_dump(rest)}{section}: {opening * depth}1{closing * depth}\n"
    assert read_config(text) is None


@settings(few, max_examples=8)
@given(st.integers(1, 60), st.integers(2, 6), st.booleans())
def test_aliases_of_aliases_are_refused_however_many_they_stand_for(
    read_config, levels, each, mapping
):
    lines = ["x0: &x0 lol"]
    for level in range(1, levels + 1):
        names = [f"*x{level - 1}" for _ in range(each)]
        if mapping:
            pairs = ", ".join(f"k{i}: {name}" for i, name in enumerate(names))
            lines.append(f"x{level}: &x{level} {{{pairs}}}")
        else:
            lines.append(f"x{level}: &x{level} [{', '.join(names)}]")
    assert read_config("\n".join([*lines, yaml.safe_dump(GOOD)])) is None


@pytest.mark.parametrize(
    "text",
    [
        "workspace: &w [*w]\n",
        "pool: &p {shards: *p}\n",
        "&all {workspace: w, pool: *all, select: {budget: 1}}\n",
        "compare: &c {methods: [*c]}\n",
        "score: &s {params: *s}\n",
    ],
)
def test_what_holds_itself_is_refused(read_config, text):
    rest = {k: v for k, v in GOOD.items() if not text.startswith((k, "&"))}
    assert read_config(text + ("" if text.startswith("&") else yaml.safe_dump(rest))) is None


def test_an_alias_stands_for_what_it_names(read_config):
    text = "workspace: &w runs/x\npool: {shards: [*w]}\nselect: {budget: 0.1}\n"
    assert read_config(text).pool.shards == ("runs/x",)
