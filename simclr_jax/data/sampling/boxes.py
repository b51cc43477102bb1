"""Crop boxes of views, for NumPy or JAX.

A box is a function of the view's key and the size of its image, so it does not depend
on where the image is stored or where its views are computed. All images have one size,
or each image has its own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data.sampling import order
from simclr_jax.data.sampling.draws import Array, between

# Attempts computed at once: one of them nearly always fits, and NumPy's cost per call
# is paid once.
_ATTEMPTS_AT_ONCE = 4


class _Limits(NamedTuple):
    """Sizes of images in pixels and the allowed crops.

    Heights, widths and areas are float32, one number or an array [..., 1] with an
    axis for the attempts.
    """

    height: Array
    width: Array
    area_min: Array
    area_max: Array
    smallest: Array
    share: tuple[float, float]
    ratio: tuple[float, float]


class _Sampler(NamedTuple):
    """How a box is drawn: attempts until one fits.

    Attributes:
      attempt: (u [..., 4], limits, xp) -> ((y, x, height, width), whether it fits).
      max_attempts: the number of attempts.
      fallback: (heights, widths, ratio) -> the box if none fits, int32 [..., 4].
    """

    attempt: Callable[[Array, _Limits, Any], tuple[list[Array], Array]]
    max_attempts: int
    fallback: Callable[[np.ndarray, np.ndarray, tuple[float, float]], np.ndarray]


def _below(u: Array, number: Array, xp: Any) -> Array:
    """Uniform integers in [0, number), as floats; 0 where number is 0."""
    return xp.floor(u * xp.maximum(number, np.float32(1)))


def _reference_attempt(u: Array, limits: _Limits, xp: Any) -> tuple[list[Array], Array]:
    """Ratio uniform, then height uniform among the heights that the area allows.

    This is the distribution of `tf.image.sample_distorted_bounding_box`, which the
    reference calls. A side grows or shrinks by a pixel where only rounding breaks the
    limits. The last place of an offset is never drawn, as in TensorFlow's operation.
    """
    height, width = limits.height, limits.width
    area_min, area_max = limits.area_min, limits.area_max
    ratio = between(u[..., 0], *limits.ratio)
    lowest = xp.rint(xp.sqrt(area_min / ratio))
    highest = xp.rint(xp.sqrt(area_max / ratio))
    too_wide = xp.rint(highest * ratio) > width
    half = np.float32(0.5)
    highest = xp.where(too_wide, xp.floor((width + half) / ratio), highest)
    highest = xp.where(xp.rint(highest * ratio) > width, highest - 1, highest)
    highest = xp.minimum(highest, height)
    lowest = xp.minimum(lowest, highest)
    h = lowest + _below(u[..., 1], highest - lowest + 1, xp)
    for change, outside in (
        (1.0, lambda h: h * xp.rint(h * ratio) < area_min),
        (-1.0, lambda h: h * xp.rint(h * ratio) > area_max),
    ):
        h = xp.where(outside(h), h + np.float32(change), h)
    w = xp.rint(h * ratio)
    area = h * w
    fits = (area >= limits.smallest) & (area <= area_max)
    fits &= (h <= height) & (w <= width) & (w > 0)
    y = _below(u[..., 2], height - h, xp)
    x = _below(u[..., 3], width - w, xp)
    return [y, x, h, w], fits


def _whole(
    heights: np.ndarray, widths: np.ndarray, ratio: tuple[float, float]
) -> np.ndarray:
    """The whole image."""
    del ratio
    zero = np.zeros_like(heights)
    return np.stack([zero, zero, heights, widths], axis=-1).astype(np.int32)


def _torchvision_attempt(
    u: Array, limits: _Limits, xp: Any
) -> tuple[list[Array], Array]:
    """Area uniform, ratio log-uniform."""
    height, width = limits.height, limits.width
    target = between(u[..., 0], *limits.share) * height * width
    ratio = xp.exp(between(u[..., 1], *map(math.log, limits.ratio)))
    w, h = xp.rint(xp.sqrt(target * ratio)), xp.rint(xp.sqrt(target / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    y = _below(u[..., 2], height - h + 1, xp)
    x = _below(u[..., 3], width - w + 1, xp)
    return [y, x, h, w], fits


def _central(
    heights: np.ndarray, widths: np.ndarray, ratio: tuple[float, float]
) -> np.ndarray:
    """The largest central crop whose ratio is in range."""
    bounded = np.clip(widths / heights, *ratio)
    w = np.rint(np.minimum(widths, heights * bounded)).astype(np.int64)
    h = np.rint(np.minimum(heights, widths / bounded)).astype(np.int64)
    box = [(heights - h) // 2, (widths - w) // 2, h, w]
    return np.stack(box, axis=-1).astype(np.int32)


_SAMPLERS = {
    "reference": _Sampler(_reference_attempt, 100, _whole),
    "torchvision": _Sampler(_torchvision_attempt, 10, _central),
}
SAMPLERS = tuple(_SAMPLERS)


class BoxDraws:
    """The draws of one sampler for images of one size or of a size each.

    Attributes:
      max_attempts: draws before the fallback is taken.
      fallback: int32 [4], or [..., 4] for images of a size each.
    """

    def __init__(
        self,
        shape: tuple[int, int] | tuple[np.ndarray, np.ndarray],
        *,
        sampler: str,
        area_min: float,
        area_max: float,
        ratio_min: float,
        ratio_max: float,
    ) -> None:
        """Takes the sizes of the images and the config's group `augment.crop`.

        Args:
          shape: (height, width) in pixels: two numbers, or two arrays that have the
            shape of the keys.
          sampler: one of `SAMPLERS`.
          area_min: smallest area as a share of the image.
          area_max: largest area.
          ratio_min: smallest width / height.
          ratio_max: largest width / height.
        """
        height, width = (np.asarray(sides, np.int64) for sides in shape)
        self.one_size = height.ndim == 0
        self._sampler = _SAMPLERS[sampler]
        self.max_attempts = self._sampler.max_attempts
        ratio = (ratio_min, ratio_max)
        self.fallback = self._sampler.fallback(height, width, ratio)
        if not self.one_size:
            height, width = height[..., None], width[..., None]
        area = (height * width).astype(np.float64)
        low = (area_min * area).astype(np.float32)
        self._limits = _Limits(
            height.astype(np.float32),
            width.astype(np.float32),
            low,
            (area_max * area).astype(np.float32),
            # The reference's crops show at least a tenth of the image, for any
            # `area_min`.
            np.maximum(low, (0.1 * area).astype(np.float32)),
            (area_min, area_max),
            ratio,
        )

    @property
    def areas(self) -> tuple[float, float]:
        """Smallest and largest crop of images of one size, as shares of the image."""
        limits = self._limits
        smallest = limits.area_min
        if self._sampler is _SAMPLERS["reference"]:
            smallest = limits.smallest
        area = float(limits.height * limits.width)
        return float(smallest) / area, float(limits.area_max) / area

    def attempt(
        self, key: order.Key, numbers: Array, xp: Any, images: Any = ...
    ) -> tuple[Array, Array]:
        """Attempts for each key.

        Args:
          key: words [...].
          numbers: uint32 [n], of the attempts.
          xp: `numpy` or `jax.numpy`.
          images: which images the keys belong to, where each has its size.

        Returns:
          (boxes int32 [..., n, 4], whether they fit [..., n]).
        """
        each = order.Key(key.first[..., None, None], key.second[..., None, None])
        places = numbers[:, None] * 4 + np.arange(4, dtype=np.uint32)
        words, _ = order.threefry(each, places, np.array([2], np.uint32))
        limits = self._limits
        if not self.one_size:
            limits = limits._replace(
                **{name: getattr(limits, name)[images] for name in limits._fields[:5]}
            )
        box, fits = self._sampler.attempt(order.uniform(words), limits, xp)
        return xp.stack(box, axis=-1).astype(np.int32), fits


def random_boxes(key: order.Key, draws: BoxDraws) -> np.ndarray:
    """Crop boxes of views, in NumPy.

    Args:
      key: uint32 arrays [...], from `order.view_keys`.
      draws: the sampler; sizes, where images have one each, have the shape [...] too.

    Returns:
      int32 [..., 4]: (y, x, height, width) in pixels.
    """
    boxes = np.broadcast_to(draws.fallback, (*key.first.shape, 4)).copy()
    remaining = np.ones(key.first.shape, bool)
    for start in range(0, draws.max_attempts, _ATTEMPTS_AT_ONCE):
        stop = min(start + _ATTEMPTS_AT_ONCE, draws.max_attempts)
        some = order.Key(key.first[remaining], key.second[remaining])
        numbers = np.arange(start, stop, dtype=np.uint32)
        drawn, fits = draws.attempt(some, numbers, np, remaining)
        found = fits.any(axis=-1)
        first = drawn[np.arange(len(drawn)), fits.argmax(axis=-1)]
        views = np.argwhere(remaining)[found]
        boxes[tuple(views.T)] = first[found]
        remaining[tuple(views.T)] = False
        if not remaining.any():
            break
    return boxes
