"""Which bytes count as an image.

The bytes decide, not the file's name. `folder:` and `prepare` keep the same rules.
"""

import io
import warnings
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

from simclr_jax.errors import first_line

# What Pillow may try: some of its other formats start programs (EPS) or are no images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# 384 MiB as RGB.
MAX_PIXELS = 1 << 27
# A JPEG spends a bit or more on each 8 x 8 pixels of one colour. Twice as many pixels,
# for odd ways of sampling, and the size in its header is wrong.
_MAX_JPEG_PIXELS_PER_BYTE = 1024
# What the boxes of ISO media files say, after `ftyp`.
_HEIF_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
    **dict.fromkeys((b"mif1", b"msf1"), "HEIF"),
}
HEIF_SUFFIXES = (".heic", ".heif", ".hif", ".avif")
HOW_TO_CONVERT = (
    "convert to JPEG first, such as with `heif-convert`, `magick` or, on macOS, "
    "`sips -s format jpeg`"
)


# The limit is MAX_PIXELS. For good, since many threads open images, and what
# `warnings.catch_warnings` changes for a while changes for all of them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class NotAnImage(ValueError):
    """A file that cannot be decoded; the message is the reason."""


def open_image(
    file: str | BinaryIO, *, num_bytes: int, shrinks: bool = False
) -> Image.Image:
    """Opens an image file: reads its header, and decodes no pixels.

    Args:
      file: a path, or the bytes of a file or of its beginning.
      num_bytes: size of the whole file.
      shrinks: JPEGs of more than `MAX_PIXELS` are opened too, since they are shrunk
        while they are decoded.

    Raises:
      NotAnImage: it has none of `FORMATS`, more than `MAX_PIXELS` pixels or than its
        bytes can hold, or colours or bands that Pillow does not read.
      OSError: the disk cannot read it.
    """
    try:
        image = Image.open(file, formats=FORMATS)
        try:
            reason = _refusal(image, num_bytes, shrinks)
        except BaseException:
            image.close()
            raise
    except MemoryError:
        raise
    except Image.UnidentifiedImageError as error:
        raise NotAnImage(_unknown(_beginning(file), file)) from error
    except Image.DecompressionBombError as error:
        raise NotAnImage(
            f"has more than {MAX_PIXELS:,} pixels: "
            f"{_how_to_shrink(_beginning(file)[:2] == _JPEG_START)}"
        ) from error
    except Exception as error:  # decoders raise anything on broken data
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise NotAnImage(f"Pillow: {first_line(error)}") from error
    if reason:
        image.close()
        raise NotAnImage(reason)
    return image


_JPEG_START = b"\xff\xd8"


def heif_kind(beginning: bytes) -> str | None:
    """'HEIC', 'HEIF' or 'AVIF' where bytes begin such a file; else None."""
    if beginning[4:8] != b"ftyp":
        return None
    return _HEIF_BRANDS.get(beginning[8:12])


def _beginning(file: str | BinaryIO) -> bytes:
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return opened.read(12)
    file.seek(0)
    return file.read(12)


def _unknown(beginning: bytes, file: str | BinaryIO) -> str:
    """Why a file is no image that Pillow identifies."""
    kind = heif_kind(beginning)
    if kind:
        return f"is {kind}, which is not decoded here: {HOW_TO_CONVERT}"
    if beginning[:4] in (b"II*\0", b"MM\0*"):
        return f"is a TIFF of a kind that Pillow does not read{_bands(file)}"
    return f"is no image of a known kind (begins with {beginning!r})"


def _bands(file: str | BinaryIO) -> str:
    """Bands and bits of a TIFF, as ' (13 bands of 16 bits)'; '' if it is damaged."""
    try:
        if isinstance(file, str):
            with open(file, "rb") as opened:
                return _bands(opened)
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        count = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    except Exception:  # on broken data
        return ""
    return (
        f" ({count} band{'s' * (count != 1)} of {bits} bits): write it as grey, with "
        "0 as black, or as RGB"
    )


def raw_mode(image: Image.Image) -> str:
    """How the pixels of an image lie in its file, in Pillow's words; '' if unknown."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else ""
    return arguments if isinstance(arguments, str) else ""


def is_deep(image: Image.Image) -> bool:
    """Whether an image that was opened, and not decoded, has more than 8 bits."""
    if image.mode == "CMYK":  # of 16 bits the upper 8
        return False
    deep = image.mode in ("I", "F") or image.mode.startswith("I;")
    return deep or ";16" in raw_mode(image) or _tiff_bits(image) == 16


def is_planar(image: Image.Image) -> bool:
    """Whether an image is a TIFF whose bands lie one behind the other."""
    tags = getattr(image, "tag_v2", {})
    planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    return planes and len(image.getbands()) > 1


def _tiff_bits(image: Image.Image) -> int:
    """Bits of the first band of a TIFF; 0 for other formats."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(TiffImagePlugin.BITSPERSAMPLE, (0,))[0]


def _refusal(image: Image.Image, num_bytes: int, shrinks: bool) -> str:
    """Why an image is not used; '' for one that is."""
    width, height = image.size
    # A JPEG of several pictures (MPO) is its first one to every decoder.
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and width * height > _MAX_JPEG_PIXELS_PER_BYTE * num_bytes:
        return (
            f"says that it has {width} x {height} pixels, more than a JPEG of "
            f"{num_bytes:,} bytes can hold"
        )
    if width * height > MAX_PIXELS and not (is_jpeg and shrinks):
        return (
            f"has {width} x {height} pixels, more than {MAX_PIXELS:,}: "
            f"{_how_to_shrink(is_jpeg)}"
        )
    if image.mode == "LAB":
        return "has Lab colours: convert it to RGB first"
    if is_planar(image) and _tiff_bits(image) == 16 and raw_mode(image).endswith("N"):
        return (
            "has 16 bits in compressed planes, of which Pillow reads 8: write it with "
            "interleaved bands (PlanarConfiguration 1), or uncompressed"
        )
    return ""


def _how_to_shrink(is_jpeg: bool) -> str:
    if is_jpeg:
        return (
            "`python -m simclr_jax.prepare --resize_short_side=PIXELS` shrinks such "
            "JPEGs while it decodes them"
        )
    return (
        "a decompression bomb, or to be shrunk first (of such sizes only JPEGs are "
        "shrunk while they are decoded)"
    )


def opened(content: bytes) -> Image.Image:
    """`open_image` of the bytes of a whole file."""
    return open_image(io.BytesIO(content), num_bytes=len(content))
