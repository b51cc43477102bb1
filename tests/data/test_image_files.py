"""Which bytes are images; the same for folders and `prepare`."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from sample_images import encoded

from simclr_jax.data import image_files, pillow_decode
from simclr_jax.data.sources import folder
from simclr_jax.errors import DataError
from simclr_jax.prepare import image_check

# pytest makes errors of what the module has switched off.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def _chunk(name, content):
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def _png_of_169_million_pixels():
    """One bit each, all 0: some 20 kB."""
    side = 13_000
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(bytes(side * (1 + side // 8)), 9))
    return b"\x89PNG\r\n\x1a\n" + header + data + _chunk(b"IEND", b"")


def _jpeg_of_another_size():
    content = bytearray(encoded("JPEG"))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", 4000, 4000)
    return bytes(content)


def _heif(brand):
    return b"\0\0\0\x18ftyp" + brand + bytes(16)


def _tiff(bands):
    buffer = io.BytesIO()
    values = np.zeros((9, 7, bands), np.uint16)
    tifffile.imwrite(buffer, values, photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n"
# Named x.jpg, whatever they are.
REFUSED = {
    "eps": (lambda: EPS, r"is no image of a known kind \(begins with b'%!PS"),
    "ppm": (lambda: encoded("PPM"), "no image of a known kind"),
    "ico": (lambda: encoded("ICO"), "no image of a known kind"),
    "large-png": (
        _png_of_169_million_pixels,
        r"has 13000 x 13000 pixels, more than 134,217,728",
    ),
    "lying-jpeg": (
        _jpeg_of_another_size,
        r"says that it has 4000 x 4000 pixels, more than a JPEG of [\d,]+ bytes",
    ),
    "heic": (lambda: _heif(b"heic"), "is HEIC, which is not decoded here: convert"),
    "heif-sequence": (lambda: _heif(b"msf1"), "is HEIF, which is not decoded here"),
    "avif": (lambda: _heif(b"avif"), "is AVIF, which is not decoded here"),
    "bands": (lambda: _tiff(bands=13), r"a TIFF .*\(13 bands of 16 bits\): write it"),
    "lab": (lambda: encoded("TIFF", mode="LAB"), "has Lab colours: convert it to RGB"),
}
ACCEPTED = {
    "gif": lambda: encoded("GIF"),
    "tiff": lambda: encoded("TIFF"),
    "animated-webp": lambda: encoded("WEBP", frames=3, lossless=True),
    "animated-png": lambda: encoded("PNG", frames=3),
    "animated-gif": lambda: encoded("GIF", frames=3),
    "pages": lambda: encoded("TIFF", frames=3),
    "palette-tiff": lambda: encoded("TIFF", mode="P"),
    "webp": lambda: encoded("WEBP"),
    "bmp": lambda: encoded("BMP"),
    "mpo": lambda: encoded("MPO", frames=2),
    # The least bytes that a JPEG of its size can have, and a third more.
    "even-jpeg": lambda: _flat_jpeg(),
}


def _flat_jpeg():
    buffer = io.BytesIO()
    image = Image.new("L", (1000, 1000))
    image.save(buffer, "JPEG", optimize=True, progressive=True)
    return buffer.getvalue()


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A `gs` first in PATH; returns the file that it leaves when it is started."""
    started = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return started


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_everywhere(name, tmp_path, programs):
    make, reason = REFUSED[name]
    content = make()
    path = tmp_path / "images" / "x.jpg"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        folder.FolderSource(str(path.parent))
    assert str(error.value).startswith(f"file {path}: is no readable image (")
    assert "\n" not in str(error.value)
    with pytest.raises(image_check.NotAnImage, match=reason):
        image_check.check_image(content, image_check.Encoding())
    # A file that came after the check of headers.
    with pytest.raises(image_files.NotAnImage, match=reason):
        pillow_decode.decode_rgb(content)
    if not content.startswith((b"\xff\xd8", b"\x89PNG")):
        with pytest.raises(image_files.NotAnImage, match=reason):
            folder.read_image_file(str(path))
    assert not programs.exists()


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_the_same_in_folders_and_prepare(name, tmp_path):
    content = ACCEPTED[name]()
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    source = folder.FolderSource(str(tmp_path))
    records, _ = source.read(np.array([0]))
    checked = image_check.check_image(content, image_check.Encoding())
    np.testing.assert_array_equal(
        pillow_decode.decode_rgb(records[0]), pillow_decode.decode_rgb(checked.content)
    )


def test_a_disk_that_fails_is_no_broken_image(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(5, "lost")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match="lost"):
        image_files.open_image("x.jpg", num_bytes=1)


def test_large_images_are_told_by_our_limit_alone():
    program = """
import io, warnings
from PIL import Image
from simclr_jax.data import image_files
buffer = io.BytesIO()
Image.new("1", (11_000, 11_000)).save(buffer, "PNG")
with warnings.catch_warnings(record=True) as caught:
    image_files.open_image(buffer, num_bytes=buffer.tell())
assert not caught
"""
    subprocess.run([sys.executable, "-c", program], check=True)
