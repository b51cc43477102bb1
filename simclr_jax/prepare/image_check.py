"""Whether a file is an image that training can decode, and how it is to be stored."""

import contextlib
import dataclasses
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from simclr_jax.data.image_files import NotAnImage, open_image
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.tf_decode import decode_rgb
from simclr_jax.errors import first_line

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
}
FILTERS = tuple(_FILTERS)
# libjpeg says so of bytes that it skips before the end marker. Up to here they are what
# some cameras fill up with; where data are damaged there are more.
_EXTRANEOUS = re.compile(
    r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9"
)
_MAX_EXTRANEOUS = 16


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
      short_side: longer short sides are shrunk to it; None keeps all sizes.
      filter: of `FILTERS`.
      jpeg_quality: of JPEGs that were shrunk; other formats stay lossless.
    """

    short_side: int | None = None
    filter: str = "lanczos"
    jpeg_quality: int = 95


@dataclasses.dataclass(frozen=True)
class CheckedImage:
    """An image as it is to be stored: JPEG or PNG."""

    content: bytes
    width: int
    height: int
    format: str
    resized: bool


def check_image(content: bytes, encoding: Encoding) -> CheckedImage:
    """Decodes a file with Pillow and as training does.

    JPEG and PNG stay the bytes they are unless they are shrunk; anything else becomes
    PNG.

    Raises:
      NotAnImage: one of the two cannot decode all of it, or it breaks a rule of
        `image_files`.
    """
    if not content:
        raise NotAnImage("is empty")
    image = _load(content)
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if kind not in ("JPEG", "PNG"):
        content = _as_png(image.convert("RGB"))
    pixels = _decode(content)
    width, height = image.size
    if pixels.shape != (height, width, 3):
        raise NotAnImage(
            f"is {width} x {height} pixels to Pillow and {pixels.shape[1]} x "
            f"{pixels.shape[0]} to TensorFlow"
        )
    short = min(width, height)
    resized = encoding.short_side is not None and short > encoding.short_side
    if resized:
        assert encoding.short_side is not None
        width = round(width * encoding.short_side / short)
        height = round(height * encoding.short_side / short)
        picture = Image.fromarray(pixels)
        picture = picture.resize((width, height), _FILTERS[encoding.filter])
        if image.mode == "L":
            picture = picture.getchannel(0)
        if kind == "JPEG":
            content = _as_jpeg(picture, encoding.jpeg_quality)
        else:
            content = _as_png(picture)
    return CheckedImage(content, width, height, kind, resized)


def _load(content: bytes) -> Image.Image:
    """All pixels, by Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        image = open_image(io.BytesIO(content), num_bytes=len(content))
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything on broken data
            raise NotAnImage(f"Pillow: {first_line(error)}") from error
    return image


def _decode(content: bytes) -> np.ndarray:
    """All pixels, as training has them."""
    with _standard_error() as said:
        try:
            pixels = decode_rgb(tf.constant(content)).numpy()
        except (tf.errors.OpError, ValueError) as error:
            raise NotAnImage(f"TensorFlow: {first_line(error)}") from error
        complaint = said()
    if complaint.startswith("Corrupt JPEG data"):
        match = _EXTRANEOUS.match(complaint)
        if not match or int(match.group(1)) > _MAX_EXTRANEOUS:
            raise NotAnImage(complaint.splitlines()[0])
    return pixels


@contextlib.contextmanager
def _standard_error() -> Iterator:
    """Catches what C code prints; libjpeg mentions damage nowhere else.

    Neither decoder fails when data in the middle of a JPEG are damaged; the rest is
    then grey or garbage.
    """
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 1000, 0).decode(errors="replace")
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _as_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
