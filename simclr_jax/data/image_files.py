"""Which bytes count as an image, and which decoder they reach.

The bytes decide, not the file's name. `folder:` and `prepare` keep the same rules.
"""

import warnings
from typing import BinaryIO

from PIL import Image

from simclr_jax.errors import first_line

# What Pillow may try: some of its other formats start programs (EPS) or are no images.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# 384 MiB as RGB.
MAX_PIXELS = 1 << 27
# A JPEG spends a bit or more on each 8 x 8 pixels of one colour. Twice as many pixels,
# for odd ways of sampling, and the size in its header is wrong.
_MAX_JPEG_PIXELS_PER_BYTE = 1024
# Modes that lose their meaning in 8 bits; PNG's 16 bits of grey are decoded.
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L")


# The limit is MAX_PIXELS. For good, since many threads open images, and what
# `warnings.catch_warnings` changes for a while changes for all of them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class NotAnImage(ValueError):
    """A file that cannot be decoded; the message is the reason."""


def open_image(file: str | BinaryIO, *, num_bytes: int) -> Image.Image:
    """Opens an image file: reads its header, and decodes no pixels.

    Args:
      file: a path, or the bytes of a file or of its beginning.
      num_bytes: size of the whole file.

    Raises:
      NotAnImage: it has none of `FORMATS`, more than `MAX_PIXELS` pixels or than its
        bytes can hold, several frames or pages, or more than 8 bits.
      OSError: the disk cannot read it.
    """
    try:
        image = Image.open(file, formats=FORMATS)
        try:
            reason = _refusal(image, num_bytes)
        except BaseException:
            image.close()
            raise
    except MemoryError:
        raise
    except Image.UnidentifiedImageError as error:
        raise NotAnImage(f"is no image of a known kind{_beginning(file)}") from error
    except Image.DecompressionBombError as error:
        raise NotAnImage(
            f"has more than {MAX_PIXELS:,} pixels: a decompression bomb"
        ) from error
    except Exception as error:  # decoders raise anything on broken data
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise NotAnImage(f"Pillow: {first_line(error)}") from error
    if reason:
        image.close()
        raise NotAnImage(reason)
    return image


def decode_rgb(image: Image.Image) -> Image.Image:
    """All pixels of an opened image, with three channels.

    Raises:
      NotAnImage: they cannot be decoded.
    """
    try:
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise anything on broken data
        raise NotAnImage(f"Pillow: {first_line(error)}") from error


def _beginning(file: str | BinaryIO) -> str:
    if isinstance(file, str):
        with open(file, "rb") as opened:
            return f" (begins with {opened.read(12)!r})"
    file.seek(0)
    return f" (begins with {file.read(12)!r})"


def _refusal(image: Image.Image, num_bytes: int) -> str:
    """Why an image is not used; '' for one that is."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"has {width} x {height} pixels, more than {MAX_PIXELS:,}"
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and width * height > _MAX_JPEG_PIXELS_PER_BYTE * num_bytes:
        return (
            f"says that it has {width} x {height} pixels, more than a JPEG of "
            f"{num_bytes:,} bytes can hold"
        )
    # A JPEG of several pictures (MPO) is its first one to every decoder.
    if getattr(image, "is_animated", False) and not is_jpeg:
        frames = getattr(image, "n_frames", "several")
        return f"is an animation or has pages ({frames} frames)"
    if image.format != "PNG" and image.mode in _DEEP_MODES:
        return f"has pixels of kind {image.mode}, not 8 bits"
    return ""
