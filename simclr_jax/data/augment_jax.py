"""SimCLR's augmentations on accelerators: the operations of `augment.py`, batched.

Images are float32 [N, H, W, 3] in [0, 1], factors and sigmas float32 [N], the draws of
a random operation float32 [N, count] (`draws.py`). The arithmetic is in `batched.py`;
nothing moves between devices when N is split over them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.data.sampling import boxes, order
from simclr_jax.data.views import device
from simclr_jax.data.views.composition import Composition


def bind(function: Callable[..., device.Planes]) -> Callable[..., jax.Array]:
    """An operation on planes as one on images [N, H, W, 3]."""

    @functools.wraps(function)
    def operation(images: jax.Array, *arguments: Any, **settings: Any) -> jax.Array:
        planes = function(device.to_planes(images), *arguments, **settings)
        return device.from_planes(planes)

    return operation


adjust_brightness = bind(device.adjust_brightness)
adjust_contrast = bind(device.adjust_contrast)
adjust_saturation = bind(device.adjust_saturation)
adjust_hue = bind(device.adjust_hue)
to_grayscale = bind(device.to_grayscale)
gaussian_blur = bind(device.gaussian_blur)
sobel = bind(device.sobel)
crop_and_resize = bind(device.crop_and_resize)
random_flip = bind(device.random_flip)
color_jitter = bind(device.color_jitter)
random_grayscale = bind(device.random_grayscale)
random_blur = bind(device.random_blur)
random_rotation = bind(device.random_rotation)
random_cutout = bind(device.random_cutout)
random_noise = bind(device.random_noise)
random_sobel = bind(device.random_sobel)


def random_boxes(key: order.Key, draws: boxes.BoxDraws) -> jax.Array:
    """Crops int32 [..., 4] of views with keys [...]; see `boxes.random_boxes`."""
    first = jnp.broadcast_to(jnp.asarray(draws.fallback), (*key.first.shape, 4))
    none_found = jnp.zeros(key.first.shape, bool)

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        number, _, found = state
        return (number < draws.max_attempts) & ~jnp.all(found)

    def attempt(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, result, found = state
        drawn, fits = draws.attempt(key, number, jnp)
        result = jnp.where((fits & ~found)[..., None], drawn, result)
        return number + 1, result, found | fits

    start = (jnp.uint32(0), first, none_found)
    return jax.lax.while_loop(unfinished, attempt, start)[1]


def random_resized_crop(
    images: jax.Array,
    key: order.Key,
    *,
    image_size: int,
    **settings: Any,
) -> jax.Array:
    """A random part of each image at [image_size, image_size].

    Args:
      images: float32 [N, H, W, 3].
      key: uint32 arrays [N].
      image_size: side of the result in pixels.
      **settings: the config's group `crop`.

    Returns:
      float32 [N, image_size, image_size, 3]; bicubic overshoot is not clipped.
    """
    draws = boxes.BoxDraws((images.shape[1], images.shape[2]), **settings)
    return crop_and_resize(images, random_boxes(key, draws), (image_size, image_size))


def views(composition: Composition) -> device.Views:
    """A composition as a function of a batch; see `batched.compose`."""
    return device.compose(
        composition.operations,
        composition.settings,
        image_size=composition.image_size,
    )
