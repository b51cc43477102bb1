"""The preprocessing of an encoder's inputs, stored with its weights.

The evaluation preprocessing in plain NumPy, for users of a pretrained encoder; input
pipelines run the same arithmetic in TensorFlow (`definition.center_crop_and_resize`).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from simclr_jax.data import image_files, pillow_decode, white_level

# bicubic: as tf.image.resize, four taps for any factor. bicubic_antialias: as Pillow,
# torchvision, timm and Hugging Face. bicubic_legacy: as TensorFlow 1, with which
# Google's published SimCLR weights were trained.
RESIZES = ("bicubic", "bicubic_antialias", "bicubic_legacy")
NO_IMAGE = "images: must be an array or list of one image or more"
_TAPS = 4
# TensorFlow looks its weights up in a table of 1024 sub-pixel positions.
_TABLE_SIZE = 1024


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _taps(old: int, new: int, *, legacy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Source indices and weights [new, 4] of bicubic resizing along one axis.

    No antialiasing. Pixel centres lie at halves and Keys' cubic has a = -0.5; taps
    outside the image are dropped and the others scaled to sum 1. Legacy: centres lie at
    whole numbers, a = -0.75, and the outermost pixels stand in for those outside.
    """
    # float32 like TensorFlow's, so that positions round to the same table entry.
    scale = np.float32(old) / np.float32(new)
    half = np.float32(0.0 if legacy else 0.5)
    centre = (np.arange(new, dtype=np.float32) + half) * scale - half
    base = np.floor(centre)
    fraction = np.rint((centre - base) * np.float32(_TABLE_SIZE)) / _TABLE_SIZE
    index = base.astype(np.int64)[:, None] + np.arange(-1, _TAPS - 1)
    distance = fraction[:, None].astype(np.float64) - np.arange(-1, _TAPS - 1)
    weights = _cubic(distance, -0.75 if legacy else -0.5)
    if not legacy:
        weights = np.where((index >= 0) & (index < old), weights, 0.0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(index, 0, old - 1), weights.astype(np.float32)


def resize_bicubic(
    images: np.ndarray, size: int, *, legacy: bool = False
) -> np.ndarray:
    """Resizes float32 [..., H, W, C] to [..., size, size, C] as TensorFlow does."""
    for axis in (-3, -2):
        index, weights = _taps(images.shape[axis], size, legacy=legacy)
        shape = (-1, 1, 1) if axis == -3 else (1, -1, 1)
        images = sum(
            np.take(images, index[:, tap], axis=axis) * weights[:, tap].reshape(shape)
            for tap in range(_TAPS)
        )
    return images


_ROWS_AT_ONCE = 16


def _shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes the first axis of float32 [H, n] to [size, n], with antialiasing."""
    length = len(images)
    scale = length / size
    width = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    distance = (np.arange(length) + 0.5 - centre[:, None]) / width
    weights = _cubic(distance, -0.5)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    parts = []
    for start in range(0, size, _ROWS_AT_ONCE):
        own = weights[start : start + _ROWS_AT_ONCE]
        used = np.flatnonzero(own.any(axis=0))
        inside = slice(used[0], used[-1] + 1)
        parts.append(own[:, inside] @ images[inside])
    return np.concatenate(parts)


def resize_antialiased(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes float32 [..., H, W, C] in [0, 1] to [..., size, size, C] as Pillow does.

    The cubic, with a = -0.5, is wider where an axis shrinks. Rows first, and clipped.
    """
    for axis in (-2, -3):
        moved = np.moveaxis(images, axis, 0)
        resized = _shrink(moved.reshape(len(moved), -1), size)
        resized = resized.reshape(size, *moved.shape[1:])
        images = np.clip(np.moveaxis(resized, 0, axis), 0.0, 1.0)
    return images


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Central square crop and bicubic resize to [0, 1]; no mean or std (as SimCLR).

    Attributes:
      image_size: side of the encoder's input in pixels.
      crop_proportion: side of the crop as a fraction of the image's shorter side.
      resize: one of `RESIZES`.
      white_level: the value that becomes 255 in images of more than 8 bits; None where
        none was seen in training.
      exif_orientation: whether images of Pillow are turned upright by their EXIF data.
    """

    image_size: int
    crop_proportion: float
    resize: str = "bicubic"
    white_level: int | None = None
    exif_orientation: bool = False

    def geometry(self) -> dict[str, Any]:
        """What is done with decoded pixels: the fields for `center_crop_and_resize`."""
        return {
            "image_size": self.image_size,
            "crop_proportion": self.crop_proportion,
            "resize": self.resize,
        }

    def levels(self, images: Any) -> np.ndarray:
        """What the encoder sees, as a picture: uint8 [N, image_size, image_size, 3]."""
        return np.rint(self(images) * 255).astype(np.uint8)

    def __call__(self, images: Any) -> np.ndarray:
        """Prepares images for the encoder.

        Args:
          images: [N, H, W, 3], one image [H, W, 3], or a sequence of images of
            different sizes; uint8 in [0, 255], floats in [0, 1], or with a white level
            integers in [0, white_level]. Images may be Pillow's.

        Returns:
          float32 [N, image_size, image_size, 3] in [0, 1].

        Raises:
          ValueError: an image is not [H, W, 3], not of a supported dtype, or has
            values outside of its range.
        """
        images = [images] if isinstance(images, Image.Image) else images
        if isinstance(images, list | tuple):
            if not images:
                raise ValueError(NO_IMAGE)
            return np.stack([self._prepare(self.pixels(image)) for image in images])
        images = as_array(images)
        return self._prepare(images[None] if images.ndim == 3 else images)

    def pixels(self, image: Any) -> np.ndarray:
        """One image as an array; those of Pillow get three channels.

        Raises:
          ValueError: it has more than 8 bits, and what white is in it is not known.
        """
        if not isinstance(image, Image.Image):
            return as_array(image)
        is_deep = image_files.is_deep(image)
        if is_deep and image.mode in ("RGB", "RGBA") and self.white_level:
            raise ValueError(
                f"image of Pillow's mode {image.mode}: has 16 bits, of which Pillow "
                "gives 8; pass an array of its values"
            )
        if self.exif_orientation:
            image = ImageOps.exif_transpose(image)
        if not is_deep or image.mode in ("RGB", "RGBA"):
            return pillow_decode.rgb_pixels(image)
        pixels = as_array(image)
        if pixels.dtype.kind == "f":  # in another range than float arrays
            pixels = white_level.to_8_bits(pixels, self.white_level or 1)
        return np.repeat(pixels[..., None], 3, axis=-1)

    def _prepare(self, images: np.ndarray) -> np.ndarray:
        """Images [..., H, W, 3] of one size."""
        shape = images.shape
        if images.ndim == 4 and not len(images):
            raise ValueError(NO_IMAGE)
        if images.ndim not in (3, 4) or shape[-1] != 3 or images.size == 0:
            raise ValueError(f"image has shape {shape[-3:]}: must be [H, W, 3]")
        height, width = shape[-3:-1]
        short = np.float32(min(height, width))
        side = int(np.rint(short * np.float32(self.crop_proportion)))
        if side == 0:
            raise ValueError(
                f"image has shape {shape[-3:]}: too small for a central crop of "
                f"{self.crop_proportion} of its side"
            )
        images = _in_unit_range(images, self.white_level)
        y, x = (height - side + 1) // 2, (width - side + 1) // 2
        images = images[..., y : y + side, x : x + side, :]
        if side == self.image_size:
            return np.clip(images, 0.0, 1.0)
        if self.resize == "bicubic_antialias":
            images = resize_antialiased(images, self.image_size)
        else:
            legacy = self.resize == "bicubic_legacy"
            images = resize_bicubic(images, self.image_size, legacy=legacy)
        return np.clip(images, 0.0, 1.0)


def as_array(images: Any) -> np.ndarray:
    """Images as a NumPy array; raises ValueError for what is no array of numbers."""
    try:
        array = np.asarray(images)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"images: cannot be an array ({error}); must be arrays of one shape, or a "
            "list of images"
        ) from error
    if array.dtype.kind in "OUSMm" or (array.dtype.kind == "V" and array.dtype.names):
        raise ValueError(
            f"images: are of type {type(images).__name__}: must be an array [N, H, W, "
            "3] or [H, W, 3], or a list of images"
        )
    return array


def _in_unit_range(images: np.ndarray, level: int | None) -> np.ndarray:
    """Pixels as float32 in [0, 1]; raises ValueError for what they cannot be."""
    if images.dtype in (np.uint16, np.uint32, np.int32) and level is not None:
        images = white_level.to_8_bits(images, level)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if images.dtype.name == "bfloat16":  # JAX's, which NumPy takes for no float
        images = images.astype(np.float32)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"image has dtype {images.dtype}: must be uint8 or float"
            + (", since training saw 8 bits alone" if level is None else ", or uint16")
        )
    low, high = float(images.min()), float(images.max())
    if math.isnan(low):  # of NaN and numbers it is NaN
        raise ValueError("float image has NaN: all values must be values in [0, 1]")
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"float image has values in [{low:.9g}, {high:.9g}]: must be in [0, 1] (or "
            "pass uint8 in [0, 255])"
        )
    return images.astype(np.float32)
