"""Whether a file is an image that training can decode, and how it is to be stored."""

import contextlib
import dataclasses
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from PIL import Image, JpegImagePlugin

from simclr_jax.data import image_files, image_traits, own_images, upright
from simclr_jax.data.image_files import NotAnImage, open_image
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.tf_decode import decode_rgb
from simclr_jax.data.white_level import FULL, Peak, of_peaks
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
      exif_orientation: they are turned upright by their EXIF data.
      white_level: the value that becomes 255 in images of more than 8 bits; None where
        it is not known yet: that of 16 bits, or the image's own if it does not fit.
    """

    short_side: int | None = None
    filter: str = "lanczos"
    jpeg_quality: int = 95
    exif_orientation: bool = True
    white_level: int | None = None

    @property
    def handling(self) -> own_images.Handling:
        """As for files that are read from a folder."""
        level = FULL if self.white_level is None else self.white_level
        return own_images.Handling(self.exif_orientation, level)

    def fitting(self, peak: Peak) -> "Encoding":
        """With a white level for an image, where it is not known yet."""
        if self.white_level is not None:
            return self
        fits = not peak.fractional and peak.value <= FULL
        level = FULL if fits else of_peaks([peak])
        return dataclasses.replace(self, white_level=level)

    def shrunk(self, width: int, height: int) -> tuple[int, int]:
        """The size that an image of some size is stored with."""
        short = min(width, height)
        if self.short_side is None or short <= self.short_side:
            return width, height
        return (
            round(width * self.short_side / short),
            round(height * self.short_side / short),
        )


@dataclasses.dataclass(frozen=True)
class CheckedImage:
    """An image as it is to be stored: JPEG or PNG.

    Attributes beside those of `parts.Table`:
      content: the file.
      peak: of an image of more than 8 bits.
    """

    content: bytes
    width: int
    height: int
    format: str
    resized: bool
    traits: int
    peak: Peak | None


def check_image(content: bytes, encoding: Encoding) -> CheckedImage:
    """Decodes a file with Pillow and as training does.

    JPEG and PNG stay the bytes they are unless they are turned, scaled or shrunk;
    anything else becomes PNG.

    Raises:
      NotAnImage: one of the two cannot decode all of it, or it breaks a rule of
        `image_files`.
    """
    if not content:
        raise NotAnImage("is empty")
    with _any_size():
        image = open_image(
            io.BytesIO(content),
            num_bytes=len(content),
            shrinks=encoding.short_side is not None,
        )
    traits = image_traits.of_image(image)
    width, height = image.size
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if width * height > image_files.MAX_PIXELS:
        picture = _shrunk_while_decoded(image, encoding)
        peak, content = None, b""
    else:
        _load(image)
        peak = own_images.peak(content) if traits & image_traits.DEEP else None
        encoding = encoding.fitting(peak) if peak else encoding
        picture, content = _as_stored(content, image, peak is not None, encoding)
    turned = upright.of_image(image, loaded=True)
    if turned > 1:
        traits |= image_traits.TURNED
    if not encoding.exif_orientation:
        traits &= ~image_traits.TURNED
    size = encoding.shrunk(*picture.size)
    resized = size != (picture.size if content else (width, height))
    if size != picture.size:
        picture = picture.resize(size, _FILTERS[encoding.filter])
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;"):
        picture = picture.getchannel(0)
    if resized or not content:
        options = {"quality": encoding.jpeg_quality}
        content = _as_jpeg(picture, options) if kind == "JPEG" else _as_png(picture)
    return CheckedImage(content, *size, kind, resized, traits, peak)


def _as_stored(
    content: bytes, image: Image.Image, is_deep: bool, encoding: Encoding
) -> tuple[Image.Image, bytes]:
    """(pixels as RGB, the file to be stored) of an image that is not shrunk.

    Args:
      content: of the file.
      image: the same, decoded by Pillow.
      is_deep: it has more than 8 bits.
      encoding: how to store it.

    Raises:
      NotAnImage: training's decoder cannot decode it, or sees another size.
    """
    is_jpeg = image.format in ("JPEG", "MPO")
    stored = content
    scaled = is_deep and encoding.white_level != FULL
    if scaled or not (is_jpeg or image.format == "PNG"):
        stored = _as_png(own_images.decode(content, encoding.handling))
        return Image.fromarray(_decode(stored)), stored
    pixels = _decode(stored)
    height, width = pixels.shape[:2]
    if (width, height) != image.size:
        raise NotAnImage(
            f"is {image.size[0]} x {image.size[1]} pixels to Pillow and {width} x "
            f"{height} to TensorFlow"
        )
    picture = Image.fromarray(pixels)
    turned = upright.of_image(image, loaded=True)
    if encoding.exif_orientation and turned > 1:
        picture = upright.turn(picture, turned)
        if is_jpeg:
            stored = _as_jpeg(_grey_again(picture, image), _as_coded(image, turned))
        else:
            stored = _as_png(_grey_again(picture, image))
    return picture, stored


def _grey_again(picture: Image.Image, image: Image.Image) -> Image.Image:
    return picture.getchannel(0) if image.mode == "L" else picture


def _as_coded(image: Image.Image, turned: int) -> dict[str, Any]:
    """Options to code a turned JPEG as finely as the file was, and no finer.

    Its coefficients are rounded by the same steps, so that little is lost again.
    """
    tables = [
        np.reshape(table, (8, 8))
        for table in image.quantization.values()  # type: ignore[attr-defined]
    ]
    if upright.swaps_sides(turned):
        tables = [table.T for table in tables]
    sampling = JpegImagePlugin.get_sampling(cast(Any, image))
    return {
        # Colours at every pixel, unless the file has them at every second one.
        "qtables": [table.ravel().tolist() for table in tables][:2],
        "subsampling": sampling if sampling == 2 else 0,
    }


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Lets Pillow open images of any size: `open_image` has the rule."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _shrunk_while_decoded(image: Image.Image, encoding: Encoding) -> Image.Image:
    """A JPEG of more than `MAX_PIXELS`, at a half, quarter or eighth of its size."""
    size = image.size
    image.draft("RGB", encoding.shrunk(*size))
    width, height = image.size
    if width * height > image_files.MAX_PIXELS:
        raise NotAnImage(
            f"has {size[0]} x {size[1]} pixels, and with the short side of "
            f"{encoding.short_side} still more than {image_files.MAX_PIXELS:,} while "
            "it is shrunk"
        )
    with _any_size(), _standard_error() as said:
        _load(image)
        _refuse_damage(said())
    turned = upright.of_image(image, loaded=True) if encoding.exif_orientation else 1
    return upright.turn(image.convert("RGB"), turned)


def _load(image: Image.Image) -> None:
    """All pixels, by Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        own_images.load(image)


def _decode(content: bytes) -> np.ndarray:
    """All pixels, as training has them."""
    with _standard_error() as said:
        try:
            pixels = decode_rgb(tf.constant(content)).numpy()
        except (tf.errors.OpError, ValueError) as error:
            raise NotAnImage(f"TensorFlow: {first_line(error)}") from error
        _refuse_damage(said())
    return pixels


def _refuse_damage(complaint: str) -> None:
    """Raises NotAnImage where libjpeg said that data in the middle are damaged."""
    if complaint.startswith("Corrupt JPEG data"):
        match = _EXTRANEOUS.match(complaint)
        if not match or int(match.group(1)) > _MAX_EXTRANEOUS:
            raise NotAnImage(complaint.splitlines()[0])


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


def _as_jpeg(image: Image.Image, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", optimize=True, **options)
    return buffer.getvalue()
