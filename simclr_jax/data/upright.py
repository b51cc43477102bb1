"""Orientation: how a camera was held, by the EXIF data of a file.

Decoders give the pixels as they lie in the file; viewers turn them. So do the readers
of one's own images (`folder:` and `prepare`); images of TensorFlow Datasets are used as
they lie, as the reference does.
"""

import re
import struct

from PIL import Image

from simclr_jax.data import image_files

_TAG = 0x0112
# What turns an image of an orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS = frozenset({5, 6, 7, 8})
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# Text chunks in which older programs keep EXIF, and others XMP.
_PNG_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """An image as it is to be seen; `orientation` is from 1 to 8, 1 for upright."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def swaps_sides(orientation: int) -> bool:
    """Whether an upright image has the other's height as its width."""
    return orientation in _SWAPS


def of_image(image: Image.Image, *, loaded: bool) -> int:
    """The orientation of an image that Pillow opened; 1 where it has none.

    That of TIFF is 1: Pillow turns it as it decodes, as the format has it.

    Args:
      image: from `image_files.open_image`.
      loaded: whether it is decoded. Pillow would decode a PNG to find what lies behind
        its pixels, so before that only what lies before them is seen.
    """
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and not loaded and "exif" not in image.info:
        return 1
    try:
        return _valid(image.getexif().get(_TAG))
    except Exception:  # on damaged EXIF data, which say nothing about the pixels
        return 1


def of_file(content: bytes) -> int:
    """The orientation of the bytes of a JPEG or PNG file; 1 where it has none.

    Cheap for files without EXIF data, and never an error.
    """
    try:
        if content.startswith(_PNG_SIGNATURE):
            return _of_png(content)
        return _of_jpeg(content)
    except Exception:  # on damaged EXIF data, which say nothing about the pixels
        return 1


def _valid(value: object) -> int:
    return value if isinstance(value, int) and value in _TURNS else 1


def _of_exif(data: bytes) -> int | None:
    exif = Image.Exif()
    exif.load(data)
    return exif.get(_TAG)


def _of_jpeg(content: bytes) -> int:
    found = None
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # fills up
            position += 1
            continue
        if marker == 0xDA:  # pixels follow
            break
        (length,) = struct.unpack_from(">H", content, position + 2)
        start, stop = position + 4, position + 2 + length
        if marker == 0xE1:
            if content.startswith(_EXIF, start):
                value = _of_exif(content[start:stop])
                if value is not None:
                    return _valid(value)
            elif content.startswith(_XMP, start):
                match = _IN_XMP.search(content, start, stop)
                found = found or (int(match.group(1)) if match else None)
        position = stop
    return _valid(found)


def _of_png(content: bytes) -> int:
    position = len(_PNG_SIGNATURE)
    while position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        start = position + 8
        if name == b"eXIf":
            return _valid(_of_exif(_EXIF + content[start : start + length]))
        if name in (b"tEXt", b"zTXt", b"iTXt") and content.startswith(
            _PNG_TEXTS, start
        ):
            return _of_png_text(content)
        position = start + length + 4
    return 1


def _of_png_text(content: bytes) -> int:
    with image_files.opened(content) as image:
        image.load()
        return of_image(image, loaded=True)
