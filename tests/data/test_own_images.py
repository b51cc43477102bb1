"""Pixels of one's own files: upright, scaled to 8 bits, the first frame, RGB.

Expected pixels are those of Pillow's own `exif_transpose` and of tifffile, and of NumPy
where neither reads a file.
"""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from sample_images import encoded

from simclr_jax.data import (
    image_files,
    image_traits,
    own_images,
    pillow_decode,
    upright,
    white_level,
)
from simclr_jax.data.image_files import NotAnImage
from simclr_jax.data.own_images import Handling

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 2**16, (13, 11, 4), np.uint16)
DEEP[0, 0] = 4096  # whose lower byte alone is 0


_pixels = pillow_decode.decode_rgb


def _chunk(name, content):
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_of_16_bits(values, *later):
    """A PNG of uint16 [H, W, 1 to 4], whose rows are filtered by their left pixel."""
    height, width, bands = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    rows = values.astype(">u2").view(np.uint8).reshape(height, width, -1)
    left = np.pad(rows, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    filtered = (rows - left).reshape(height, -1)
    data = np.concatenate([np.ones((height, 1), np.uint8), filtered], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = (
        _chunk(b"IHDR", header),
        _chunk(b"IDAT", zlib.compress(data.tobytes())),
        *later,
        _chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


RGB = {"photometric": "rgb"}
GREY = {"photometric": "minisblack"}
PLANES = {**RGB, "planarconfig": "separate"}
FRACTIONS = (DEEP[..., 0] / 65535).astype(np.float32)
# Files of more than 8 bits, and their values.
DEEP_FILES = {
    "png grey": lambda: (png_of_16_bits(DEEP[..., :1]), DEEP[..., 0]),
    "png grey alpha": lambda: (png_of_16_bits(DEEP[..., :2]), DEEP[..., 0]),
    "png rgb": lambda: (png_of_16_bits(DEEP[..., :3]), DEEP[..., :3]),
    "png rgba": lambda: (png_of_16_bits(DEEP), DEEP[..., :3]),
    "tiff grey": lambda: (_tiff(DEEP[..., 0], **GREY), DEEP[..., 0]),
    "tiff big-endian": lambda: (
        _tiff(DEEP[..., :3], byteorder=">", **RGB),
        DEEP[..., :3],
    ),
    "tiff little-endian": lambda: (
        _tiff(DEEP[..., :3], byteorder="<", **RGB),
        DEEP[..., :3],
    ),
    "tiff compressed": lambda: (
        _tiff(DEEP[..., :3], compression="zlib", predictor=True, **RGB),
        DEEP[..., :3],
    ),
    "tiff rgba tiles": lambda: (
        _tiff(DEEP, tile=(16, 16), extrasamples=["unassalpha"], **RGB),
        DEEP[..., :3],
    ),
    "tiff alpha times colours": lambda: (
        _tiff(DEEP, extrasamples=["assocalpha"], **RGB),
        DEEP[..., :3],
    ),
    "tiff planes": lambda: (
        _tiff(np.ascontiguousarray(DEEP[..., :3].transpose(2, 0, 1)), **PLANES),
        DEEP[..., :3],
    ),
    "tiff 32 bits": lambda: (
        _tiff(
            DEEP[..., 0].astype(np.int32) * 3, byteorder=">", compression="zlib", **GREY
        ),
        DEEP[..., 0].astype(np.int32) * 3,
    ),
    "tiff floats": lambda: (
        _tiff(FRACTIONS, byteorder=">", compression="zlib", **GREY),
        FRACTIONS,
    ),
    "tiff pages": lambda: (_tiff(DEEP[..., 0:2].transpose(2, 0, 1)), DEEP[..., 0]),
}


@pytest.mark.parametrize("name", DEEP_FILES)
def test_values_of_more_than_8_bits_are_read_whole(name):
    content, expected = DEEP_FILES[name]()
    values, inverted = own_images.deep_values(content)
    np.testing.assert_array_equal(values, expected)
    assert not inverted
    peak = own_images.peak(content)
    assert peak == (expected.max(), expected.dtype.kind == "f")
    level = white_level.of_peaks([peak])
    found = _pixels(own_images.as_jpeg_or_png(content, Handling(white_level=level)))
    wide = expected.astype(np.float64)
    wide = np.rint(wide * 255) if level == 1 else np.floor(wide / (level + 1) * 256)
    wide = wide if wide.ndim == 3 else wide[..., None]
    np.testing.assert_array_equal(found, np.broadcast_to(wide, found.shape))


def test_planes_of_16_bits_that_pillow_reads_by_half_are_refused():
    planes = np.ascontiguousarray(DEEP[..., :3].transpose(2, 0, 1))
    with pytest.raises(NotAnImage, match="16 bits in compressed planes"):
        image_files.opened(_tiff(planes, compression="zlib", **PLANES))


def test_where_0_is_white_it_stays_white():
    content = _tiff(DEEP[..., 0], photometric="miniswhite")
    found = np.asarray(own_images.decode(content, Handling()))
    np.testing.assert_array_equal(found, 255 - (DEEP[..., 0] >> 8))


@pytest.mark.parametrize(
    ("top", "level"),
    [(0, 255), (255, 255), (256, 1023), (1023, 1023), (4095, 4095), (4096, 16383)],
)
def test_the_white_level_is_that_of_the_least_even_number_of_bits(top, level):
    peaks = [white_level.Peak(top, False), white_level.Peak(0.5, True)]
    assert white_level.of_peaks(peaks) == level
    assert white_level.to_8_bits(np.array([level], np.uint16), level) == 255


def test_what_exceeds_or_does_not_fit_the_white_level_is_refused():
    content = png_of_16_bits(DEEP[..., :1])
    with pytest.raises(NotAnImage, match=r"above the white level 4095; .*white_level"):
        own_images.decode(content, Handling(white_level=4095))
    fractions = _tiff(FRACTIONS, **GREY)
    with pytest.raises(NotAnImage, match=r"float values in .* white level is 4095"):
        own_images.decode(fractions, Handling(white_level=4095))
    for values in (np.float32([[np.nan, 1]]), np.int32([[-1, 5]])):
        with pytest.raises(NotAnImage, match=r"has values in \["):
            own_images.peak(_tiff(values, **GREY))


def test_of_16_bits_in_all_a_png_is_passed_on():
    content = png_of_16_bits(DEEP)
    assert own_images.as_jpeg_or_png(content, Handling()) is content


PICTURE = np.zeros((16, 24, 3), np.uint8)
PICTURE[:8, :16] = [255, 40, 0]
PICTURE[8:, 16:] = [0, 60, 250]


def _with_orientation(kind, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_images_are_turned_upright(kind, orientation):
    options = {"lossless": True} if kind == "WEBP" else {}
    content = _with_orientation(kind, orientation, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = own_images.as_jpeg_or_png(content, Handling())
    np.testing.assert_array_equal(_pixels(found), expected)
    if orientation == 1 and kind in ("JPEG", "PNG", "MPO"):
        assert found is content
    if kind in ("JPEG", "PNG"):
        assert own_images.as_jpeg_or_png(content, Handling(upright=False)) is content


def _xmp(orientation):
    text = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    data = b"http://ns.adobe.com/xap/1.0/\0" + text.encode()
    plain = encoded("JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data + plain[2:]


def _behind_pixels(orientation):
    exif = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return png_of_16_bits(DEEP[..., :3], _chunk(b"eXIf", exif))


@pytest.mark.parametrize(
    ("content", "orientation"),
    [
        (lambda: _xmp(8), 8),
        (lambda: _behind_pixels(6), 6),
        (lambda: _with_orientation("JPEG", 9), 1),
        (lambda: _with_orientation("JPEG", 6)[:30], 1),
        (lambda: encoded("JPEG", progressive=True), 1),
    ],
)
def test_orientations_elsewhere_and_damaged_ones(content, orientation):
    assert upright.of_file(content()) == orientation


def test_a_deep_image_is_turned_and_scaled():
    content = _behind_pixels(6)
    handling = Handling(white_level=2**18 - 1)
    found = _pixels(own_images.as_jpeg_or_png(content, handling))
    np.testing.assert_array_equal(found, np.rot90(DEEP[..., :3] >> 10, k=-1))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_used(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    several, one = encoded(kind, frames=3, **options), encoded(kind, **options)
    found = _pixels(own_images.as_jpeg_or_png(several, Handling()))
    np.testing.assert_array_equal(found, _pixels(one))


def _traits(content):
    with image_files.opened(content) as image:
        return image_traits.of_image(image)


def test_what_is_done_is_counted():
    extra = RNG.integers(0, 256, (9, 7, 5), np.uint8)
    files = [
        encoded("JPEG"),
        encoded("JPEG", mode="CMYK"),
        _with_orientation("MPO", 3),
        _with_orientation("TIFF", 5),
        encoded("PNG", mode="RGBA"),
        encoded("PNG", mode="LA"),
        encoded("PNG", mode="P", transparency=3),
        encoded("GIF", frames=2),
        _tiff(extra, extrasamples=[0, 0], **RGB),
        _tiff(DEEP, **RGB, extrasamples=["unspecified"]),
    ]
    counts = image_traits.counts([_traits(content) for content in files])
    assert counts == {
        "JPEG": 3,
        "TIFF": 3,
        "PNG": 3,
        "GIF": 1,
        "turned upright (EXIF orientation)": 2,
        "of more than 8 bits, scaled": 1,
        "of several frames or pages, the first one is used": 1,
        "with transparency, which is dropped": 3,
        "in CMYK, converted to RGB": 1,
        "with further bands, which are dropped": 2,
    }
    words = image_traits.in_words(counts)
    assert words.startswith("3 JPEG, 3 TIFF, 3 PNG, 1 GIF; 2 turned upright (")
