"""The preprocessing of an encoder's inputs, stored with its weights.

The evaluation preprocessing in plain NumPy, for users of a pretrained encoder; input
pipelines run the same arithmetic in TensorFlow (`definition.center_crop_and_resize`).
"""

import dataclasses
from typing import Any

import numpy as np

# bicubic: as tf.image.resize. bicubic_legacy: as TensorFlow 1, with which Google's
# published SimCLR weights were trained.
RESIZES = ("bicubic", "bicubic_legacy")
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


def resize_bicubic(image: np.ndarray, size: int, *, legacy: bool = False) -> np.ndarray:
    """Resizes float32 [H, W, C] to [size, size, C], as TensorFlow does (`RESIZES`)."""
    for axis in (0, 1):
        index, weights = _taps(image.shape[axis], size, legacy=legacy)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        image = sum(
            np.take(image, index[:, tap], axis=axis) * weights[:, tap].reshape(shape)
            for tap in range(_TAPS)
        )
    return image


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Central square crop and bicubic resize to [0, 1]; no mean or std (as SimCLR).

    Attributes:
      image_size: side of the encoder's input in pixels.
      crop_proportion: side of the crop as a fraction of the image's shorter side.
      resize: one of `RESIZES`.
    """

    image_size: int
    crop_proportion: float
    resize: str = "bicubic"

    def __call__(self, images: Any) -> np.ndarray:
        """Prepares images for the encoder.

        Args:
          images: [N, H, W, 3], one image [H, W, 3], or a sequence of images of
            different sizes; uint8 in [0, 255] or floats in [0, 1].

        Returns:
          float32 [N, image_size, image_size, 3] in [0, 1].

        Raises:
          ValueError: an image is not [H, W, 3], not of a supported dtype, or has float
            values outside [0, 1].
        """
        if not isinstance(images, list | tuple):
            images = np.asarray(images)
            images = images[None] if images.ndim == 3 else images
        return np.stack([self._one(np.asarray(image)) for image in images])

    def _one(self, image: np.ndarray) -> np.ndarray:
        if image.ndim != 3 or image.shape[-1] != 3 or image.size == 0:
            raise ValueError(f"image has shape {image.shape}: must be [H, W, 3]")
        if image.dtype == np.uint8:
            image = image.astype(np.float32) / np.float32(255)
        elif np.issubdtype(image.dtype, np.floating):
            low, high = image.min(), image.max()
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"float image has values in [{low:.3g}, {high:.3g}]: must be in "
                    "[0, 1] (or pass uint8 in [0, 255])"
                )
            image = image.astype(np.float32)
        else:
            raise ValueError(f"image has dtype {image.dtype}: must be uint8 or float")
        height, width = image.shape[:2]
        short = np.float32(min(height, width))
        side = int(np.rint(short * np.float32(self.crop_proportion)))
        y, x = (height - side + 1) // 2, (width - side + 1) // 2
        if side == 0:
            raise ValueError(
                f"image has shape {image.shape}: too small for a central crop of "
                f"{self.crop_proportion} of its side"
            )
        image = image[y : y + side, x : x + side]
        if side != self.image_size:
            legacy = self.resize == "bicubic_legacy"
            image = resize_bicubic(image, self.image_size, legacy=legacy)
        return np.clip(image, 0.0, 1.0)
