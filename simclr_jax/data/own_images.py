"""One's own image files, as `folder:` and `prepare` read them: upright, 8 bits, RGB.

Decoders of several libraries read images at several places: TensorFlow's in graphs,
Pillow in memory and where TensorFlow is missing. None of them knows how a camera was
held or which range a dataset uses. So files for which that matters, and all formats but
JPEG and PNG, become PNGs before any decoder sees them.
"""

import dataclasses
import io
import sys

import numpy as np
from PIL import Image, TiffImagePlugin

from simclr_jax.data import image_files, upright, white_level
from simclr_jax.data.image_files import NotAnImage
from simclr_jax.errors import first_line

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_BITS = 24  # where a PNG has its bits per channel
_NATIVE = {"F;32BF": "F;32NF", "I;32BS": "I;32NS", "I;16BS": "I;16NS"}


@dataclasses.dataclass(frozen=True)
class Handling:
    """What is done with the pixels of a file.

    Attributes:
      upright: turned by their EXIF orientation.
      white_level: the value of more than 8 bits that becomes 255.
    """

    upright: bool = True
    white_level: int = white_level.FULL


DEFAULT = Handling()


def as_jpeg_or_png(content: bytes, handling: Handling) -> bytes:
    """The bytes of an image file, as a file that every decoder reads alike.

    A JPEG or PNG that needs nothing is returned as it is, even if it is damaged: its
    decoder will say so. Others become uncompressed PNG, which costs copies and no loss.

    Raises:
      NotAnImage: it cannot be decoded, or has values above the white level.
    """
    if content.startswith(_PNG_SIGNATURE):
        scaled = content[_PNG_BITS : _PNG_BITS + 1] == b"\x10"
        is_ready = not scaled or handling.white_level == white_level.FULL
    else:
        is_ready = content.startswith(b"\xff\xd8")
    if is_ready and not (handling.upright and upright.of_file(content) > 1):
        return content
    buffer = io.BytesIO()
    decode(content, handling).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def decode(content: bytes, handling: Handling) -> Image.Image:
    """All pixels of the bytes of a file: the first frame or page, RGB or grey.

    Alpha and further bands are dropped.

    Raises:
      NotAnImage: they cannot be decoded, or exceed the white level.
    """
    with image_files.opened(content) as image:
        is_deep = image_files.is_deep(image)
        pixels = load(image)
        turned = upright.of_image(image, loaded=True) if handling.upright else 1
        if is_deep:
            values, inverted = deep_values(content)
            pixels = Image.fromarray(_to_8_bits(values, handling.white_level, inverted))
        elif pixels.mode != "L":
            pixels = _to_rgb(pixels)
        return upright.turn(pixels, turned)


def peak(content: bytes) -> white_level.Peak:
    """The largest value of a file of more than 8 bits.

    Raises:
      NotAnImage: it cannot be decoded, or a value is no brightness.
    """
    values, _ = deep_values(content)
    try:
        return white_level.peak_of(values)
    except ValueError as error:
        raise NotAnImage(str(error)) from error


def deep_values(content: bytes) -> tuple[np.ndarray, bool]:
    """The values of a file of more than 8 bits, as they lie in it.

    Of RGB with 16 bits Pillow reads the upper 8 alone, so it is asked for each half.

    Returns:
      ([H, W] or [H, W, 3], whether 0 is white).
    """
    with image_files.opened(content) as image:
        tags = getattr(image, "tag_v2", {})
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            native = _NATIVE.get(image_files.raw_mode(image))
            if native and image.tile[0][0] == "libtiff":  # type: ignore[attr-defined]
                # That decoder has put the bytes into this machine's order already.
                image = _with_raw_mode(image, native)
            return np.asarray(load(image)), inverted
        if image_files.raw_mode(image) == "LA;16B":  # of PNG: its bytes as four bands
            pixels = load(_with_raw_mode(image, "RGBA", mode="RGBA"))
            halves = np.asarray(pixels).astype(np.uint16)
            return halves[..., 0] << 8 | halves[..., 1], inverted
        order = "LB" if _is_little_endian(image) else "BL"
        upper, lower = (
            np.asarray(_half(content, half))[..., :3].astype(np.uint16)
            for half in order
        )
        return upper << 8 | lower, inverted


def _is_little_endian(image: Image.Image) -> bool:
    """Whether the lower byte of 16 bits comes first, where Pillow unpacks them."""
    raw = image_files.raw_mode(image)
    if raw.endswith(";16N"):
        return sys.byteorder == "little"
    if ";16" in raw:
        return raw.endswith("L")
    # A plane of a TIFF.
    return image.tag_v2.prefix == b"II"  # type: ignore[attr-defined]


def _half(content: bytes, half: str) -> Image.Image:
    """The first ('B') or second ('L') byte of each value of 16 bits."""
    with image_files.opened(content) as image:
        return load(_with_raw_mode(image, None, half=half))


def _with_raw_mode(
    image: Image.Image, raw_mode: str | None, *, half: str = "", mode: str = ""
) -> Image.Image:
    """An opened image whose pixels will be unpacked in another way."""
    tiles = []
    for codec, extents, offset, arguments in image.tile:  # type: ignore[attr-defined]
        old = arguments if isinstance(arguments, str) else arguments[0]
        # Colours times alpha are taken as they are.
        bands = old.split(";")[0].replace("a", "A")
        new = raw_mode or f"{bands};16{half}"
        rest = () if isinstance(arguments, str) else arguments[1:]
        new_arguments = new if isinstance(arguments, str) else (new, *rest)
        tile = image.tile[0].__class__  # type: ignore[attr-defined]
        values = (codec, extents, offset, new_arguments)
        tiles.append(tile(*values) if tile is not tuple else values)
    image.tile = tiles  # type: ignore[attr-defined]
    if mode:
        image._mode = mode
    return image


def _to_8_bits(values: np.ndarray, level: int, inverted: bool) -> np.ndarray:
    try:
        pixels = white_level.to_8_bits(values, level)
    except ValueError as error:
        raise NotAnImage(
            f"{error}; config.data.white_level, or --white_level of `prepare`, sets "
            "that of a dataset"
        ) from error
    return 255 - pixels if inverted else pixels


def load(image: Image.Image) -> Image.Image:
    """An opened image with its pixels; raises NotAnImage where they are damaged."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on broken data
        raise NotAnImage(f"Pillow: {first_line(error)}") from error
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        # Pillow knows no direct way from grey times alpha.
        return (image.convert("LA") if image.mode == "La" else image).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on broken data
        raise NotAnImage(f"Pillow: {first_line(error)}") from error
