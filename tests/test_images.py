"""Bytes to upright RGB images, or a reason that is the same each time."""

import io
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coreset_ray.io.images import BadImage, decode

MANY = 10**6
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}}


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(width=31, height=17, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decoded(data, max_pixels=MANY):
    image = decode(data, max_pixels)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width, height, pixels=b"", depth=8, color=2):
    """A PNG by hand; its header may promise what is not there."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def reason(data, max_pixels=MANY):
    with pytest.raises(BadImage) as error:
        decode(data, max_pixels)
    with pytest.raises(BadImage) as again:
        decode(bytes(bytearray(data)), max_pixels)
    assert str(error.value) == str(again.value), "the reason is the same each time"
    assert str(error.value) and "0x" not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# --- good images -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_the_pixels(format):
    pixels = picture()
    data = encoded(Image.fromarray(pixels), format, **LOSSLESS[format])
    np.testing.assert_array_equal(decoded(data), pixels)


def test_jpeg_gives_nearly_the_pixels():
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    pixels = np.stack([smooth, smooth.T, 255 - smooth], axis=-1)
    answer = decoded(encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0))
    assert np.abs(answer.astype(int) - pixels).max() < 16


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(picture()).convert(mode)
    answer = decoded(encoded(image, "PNG"))
    np.testing.assert_array_equal(answer, np.asarray(image.convert("RGB")))
    assert answer.std() > 30


def test_alpha_is_dropped_not_blended():
    pixels = picture()
    alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)
    image = Image.fromarray(np.concatenate([pixels, alpha], axis=-1))
    np.testing.assert_array_equal(decoded(encoded(image, "PNG")), pixels)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency(transparency):
    image = Image.fromarray(picture()).quantize(200)
    data = encoded(image, "PNG", transparency=transparency)
    np.testing.assert_array_equal(decoded(data), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colors():
    blocks = np.zeros((32, 32, 3), np.uint8)
    blocks[:16] = 230, 20, 20
    blocks[16:] = 240, 240, 240
    data = encoded(Image.fromarray(blocks).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(decoded(data).astype(int) - blocks).max() < 12


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format):
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    answer = decoded(encoded(Image.fromarray(grey), format))
    np.testing.assert_array_equal(answer, np.repeat((grey >> 8)[..., None], 3, axis=-1))


def test_sixteen_bit_color_is_scaled_not_clipped():
    wide = (picture().astype(np.uint16) << 8) | 0x7F
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    answer = decoded(png(wide.shape[1], wide.shape[0], rows, depth=16))
    np.testing.assert_array_equal(answer, picture())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_undone(orientation, format):
    upright = picture()
    turned = {  # how a camera that held the sensor so stored this scene
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(turned))
    data = encoded(image, format, exif=exif, **LOSSLESS[format])
    np.testing.assert_array_equal(decoded(data), upright)


def test_a_turned_jpeg_and_turned_sixteen_bits():
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(Image.fromarray(picture()), "JPEG", exif=exif)
    assert decode(jpeg, MANY).size == (17, 31)
    grey = np.arange(0, 65536, 64, dtype=np.uint16).reshape(16, 64)
    answer = decoded(encoded(Image.fromarray(grey), "PNG", exif=exif))
    np.testing.assert_array_equal(answer[..., 0], np.rot90(grey >> 8, -1))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_exif_does_not_cost_the_image(format, exif):
    pixels = picture()
    data = encoded(Image.fromarray(pixels), format, exif=exif, **LOSSLESS.get(format, {}))
    assert b"garbage" not in exif or b"garbage" in data
    answer = decoded(data)
    assert answer.shape == pixels.shape
    assert format == "JPEG" or np.array_equal(answer, pixels)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(3)]
    options = {"save_all": True, "append_images": frames[1:], **LOSSLESS[format]}
    data = encoded(frames[0], format, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(decoded(data), picture(seed=0))


def test_a_photograph_with_a_second_picture_behind_it():
    data = encoded(
        Image.fromarray(picture()),
        "MPO",
        save_all=True,
        append_images=[Image.fromarray(picture(seed=1))],
    )
    np.testing.assert_array_equal(
        decoded(data), decoded(encoded(Image.fromarray(picture()), "JPEG"))
    )


@pytest.mark.parametrize("format", [*LOSSLESS, "JPEG"])
def test_one_pixel(format):
    image = Image.new("RGB", (1, 1), (200, 200, 200))
    answer = decoded(encoded(image, format, **LOSSLESS.get(format, {})))
    assert answer.shape == (1, 1, 3) and np.abs(answer.astype(int) - 200).max() <= 2


# --- bad images ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "zero bytes"),
        (b"<html>404 Not Found</html>", "known format"),
        (b"\x00" * 100, "known format"),
        (b"%PDF-1.4\n%\xe2\xe3\n1 0 obj\n<<>>\nendobj\n", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "known format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known format"),
        (encoded(Image.fromarray(picture()), "GIF"), "known format"),
        (encoded(Image.fromarray(picture()), "PPM"), "known format"),
        (encoded(Image.fromarray(picture()), "ICO"), "known format"),
    ],
    ids=["empty", "html", "zeros", "pdf", "eps", "svg", "gif", "ppm", "ico"],
)
def test_what_is_no_image_of_a_known_format(data, expected):
    assert expected in reason(data)


@pytest.mark.parametrize("format", [*LOSSLESS, "JPEG"])
def test_an_image_that_ends_early(format):
    data = encoded(Image.fromarray(picture(64, 64)), format, **LOSSLESS.get(format, {}))
    for cut in (3, 12, 40, len(data) // 4, len(data) // 2, len(data) * 3 // 4):
        assert reason(data[:cut])


def test_the_boundary_of_max_pixels():
    data = encoded(Image.fromarray(picture(31, 17)), "PNG")
    assert decode(data, 31 * 17).size == (31, 17)
    assert reason(data, 31 * 17 - 1) == "31 × 17 pixels, more than max_pixels = 526"


@pytest.mark.parametrize(
    ("edge", "max_pixels", "said"),
    [(9000, 50_000_000, "50000000"), (20_000, 50_000_000, "50000000")],
)
def test_a_header_that_promises_too_much(edge, max_pixels, said):
    assert said in reason(png(edge, edge), max_pixels)


def test_pillows_own_limit_is_not_reported_as_ours():
    text = reason(png(20_000, 20_000), 10**9)  # 4e8 pixels, fewer than max_pixels
    assert "1000000000" not in text and str(2 * Image.MAX_IMAGE_PIXELS) in text


BOMB = """
import resource, sys
from coreset_ray.io.images import BadImage, decode
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(data, 50_000_000)
except BadImage:
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) // 1024)
"""


@pytest.mark.parametrize("edge", [8000, 20_000])
def test_a_bomb_does_not_fill_the_memory(edge):
    bomb = png(edge, edge, bytes(edge * (1 + 3 * edge) // 100))
    done = subprocess.run(
        [sys.executable, "-c", BOMB], input=bomb, capture_output=True, check=True, env=os.environ
    )
    assert int(done.stdout) < 40, "MiB more than before; the pixels would be 183 or 1144"


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"])
)
def test_random_bytes_raise_nothing_else(data, start):
    assert reason(start + data)


_SOURCES = [
    encoded(Image.fromarray(picture()), format, **LOSSLESS.get(format, {}))
    for format in ("JPEG", "PNG", "WEBP", "BMP")  # libtiff would write to stderr
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(_SOURCES),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_damaged_images_raise_nothing_else(source, changes):
    data = bytearray(source)
    for place, value in changes:
        data[int(place**3 * len(data))] = value  # mostly in the headers
    try:
        assert decode(bytes(data), MANY).mode == "RGB"
    except BadImage as error:
        assert str(error) and not re.search(r"0x[0-9a-f]{6}", str(error))
