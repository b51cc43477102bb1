"""Random crops of many images of one size at a time, for NumPy or JAX.

`augment.random_crop_box` draws them for one image of any size, in TensorFlow. Other
draws, the same distribution: the two samplers are those described there.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data.sampling import order
from simclr_jax.data.sampling.draws import Array, between


class _Limits(NamedTuple):
    """Size of the images in pixels, and what a crop may be."""

    height: int
    width: int
    area_min: float
    area_max: float
    ratio_min: float
    ratio_max: float


class _Sampler(NamedTuple):
    """How a crop is drawn: again and again, until a draw fits.

    Attributes:
      attempt: (u [..., 4], limits, xp) -> ((y, x, height, width), whether it fits).
      max_attempts: after which the fallback counts.
      fallback: limits -> (y, x, height, width).
    """

    attempt: Callable[[Array, _Limits, Any], tuple[list[Array], Array]]
    max_attempts: int
    fallback: Callable[[_Limits], tuple[int, int, int, int]]


def _below(u: Array, number: Array, xp: Any) -> Array:
    """Uniform integers in [0, number), as floats; 0 where number is 0."""
    return xp.floor(u * xp.maximum(number, 1.0))


def _reference_attempt(u: Array, limits: _Limits, xp: Any) -> tuple[list[Array], Array]:
    """Ratio uniform, then height uniform among those that the area allows.

    A side is made a pixel longer or shorter where rounding alone breaks the limits. The
    last place of an offset is never drawn, as in TensorFlow's operation.
    """
    height, width = float(limits.height), float(limits.width)
    ratio = between(u[..., 0], limits.ratio_min, limits.ratio_max)
    area_min = np.float32(limits.area_min * height * width)
    area_max = np.float32(limits.area_max * height * width)
    lowest = xp.rint(xp.sqrt(area_min / ratio))
    highest = xp.rint(xp.sqrt(area_max / ratio))
    too_wide = xp.rint(highest * ratio) > width
    highest = xp.where(too_wide, xp.floor((width + 0.5) / ratio), highest)
    highest = xp.where(xp.rint(highest * ratio) > width, highest - 1, highest)
    highest = xp.minimum(highest, height)
    lowest = xp.minimum(lowest, highest)
    h = lowest + _below(u[..., 1], highest - lowest + 1, xp)
    for change, outside in (
        (1.0, lambda h: h * xp.rint(h * ratio) < area_min),
        (-1.0, lambda h: h * xp.rint(h * ratio) > area_max),
    ):
        h = xp.where(outside(h), h + change, h)
    w = xp.rint(h * ratio)
    area = h * w
    # A crop has to show a tenth of the image, whatever its smallest area is said to be.
    smallest = max(area_min, np.float32(0.1 * height * width))
    fits = (area >= smallest) & (area <= area_max)
    fits &= (h <= height) & (w <= width) & (w > 0)
    y = _below(u[..., 2], height - h, xp)
    x = _below(u[..., 3], width - w, xp)
    return [y, x, h, w], fits


def _whole(limits: _Limits) -> tuple[int, int, int, int]:
    return 0, 0, limits.height, limits.width


def _torchvision_attempt(
    u: Array, limits: _Limits, xp: Any
) -> tuple[list[Array], Array]:
    """Area uniform, ratio log-uniform."""
    height, width = float(limits.height), float(limits.width)
    target = between(u[..., 0], limits.area_min, limits.area_max) * height * width
    ratio = xp.exp(
        between(u[..., 1], math.log(limits.ratio_min), math.log(limits.ratio_max))
    )
    w, h = xp.rint(xp.sqrt(target * ratio)), xp.rint(xp.sqrt(target / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    y = _below(u[..., 2], height - h + 1, xp)
    x = _below(u[..., 3], width - w + 1, xp)
    return [y, x, h, w], fits


def _central(limits: _Limits) -> tuple[int, int, int, int]:
    """The largest central crop whose ratio is in range."""
    height, width = limits.height, limits.width
    ratio = min(max(width / height, limits.ratio_min), limits.ratio_max)
    w, h = round(min(width, height * ratio)), round(min(height, width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


_SAMPLERS = {
    "reference": _Sampler(_reference_attempt, 100, _whole),
    "torchvision": _Sampler(_torchvision_attempt, 10, _central),
}


class BoxDraws:
    """The draws of one sampler for images of one size; see `random_boxes`."""

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        sampler: str,
        area_min: float,
        area_max: float,
        ratio_min: float,
        ratio_max: float,
    ) -> None:
        """Takes the (height, width) of the images and the config's group `crop`."""
        self._limits = _Limits(*shape, area_min, area_max, ratio_min, ratio_max)
        self._sampler = _SAMPLERS[sampler]
        self.max_attempts = self._sampler.max_attempts
        self.fallback = np.array(self._sampler.fallback(self._limits), np.int32)

    def attempt(self, key: order.Key, number: Array, xp: Any) -> tuple[Array, Array]:
        """One draw for each key [...]: (boxes int32 [..., 4], whether they fit)."""
        each = order.Key(key.first[..., None], key.second[..., None])
        places = xp.arange(4, dtype=np.uint32)
        words, _ = order.threefry(each, number * 4 + places, np.array([2], np.uint32))
        box, fits = self._sampler.attempt(order.uniform(words), self._limits, xp)
        return xp.stack(box, axis=-1).astype(np.int32), fits


def random_boxes(key: order.Key, draws: BoxDraws) -> np.ndarray:
    """Crops of views, in NumPy.

    Args:
      key: uint32 arrays [...], from `order.view_keys`.
      draws: what to draw.

    Returns:
      int32 [..., 4]: (y, x, height, width) in pixels.
    """
    shape = key.first.shape
    key = order.Key(key.first.reshape(-1), key.second.reshape(-1))
    boxes = np.tile(draws.fallback, (key.first.size, 1))
    left = np.arange(key.first.size)
    for number in range(draws.max_attempts):
        if not left.size:
            break
        own = order.Key(key.first[left], key.second[left])
        drawn, fits = draws.attempt(own, np.array([number], np.uint32), np)
        boxes[left[fits]] = drawn[fits]
        left = left[~fits]
    return boxes.reshape(*shape, 4)
