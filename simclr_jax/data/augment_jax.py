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

from simclr_jax.data import batched, boxes, order
from simclr_jax.data.composition import Composition


def bind(function: Callable[..., batched.Planes]) -> Callable[..., jax.Array]:
    """An operation on planes as one on images [N, H, W, 3]."""

    @functools.wraps(function)
    def operation(images: jax.Array, *arguments: Any, **settings: Any) -> jax.Array:
        planes = function(batched.to_planes(images), *arguments, **settings)
        return batched.from_planes(planes)

    return operation


adjust_brightness = bind(batched.adjust_brightness)
adjust_contrast = bind(batched.adjust_contrast)
adjust_saturation = bind(batched.adjust_saturation)
adjust_hue = bind(batched.adjust_hue)
to_grayscale = bind(batched.to_grayscale)
gaussian_blur = bind(batched.gaussian_blur)
sobel = bind(batched.sobel)
crop_and_resize = bind(batched.crop_and_resize)
random_flip = bind(batched.random_flip)
color_jitter = bind(batched.color_jitter)
random_grayscale = bind(batched.random_grayscale)
random_blur = bind(batched.random_blur)
random_rotation = bind(batched.random_rotation)
random_cutout = bind(batched.random_cutout)
random_noise = bind(batched.random_noise)
random_sobel = bind(batched.random_sobel)


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


def views(composition: Composition) -> batched.Views:
    """A composition as a function of a batch; see `batched.compose`."""
    return batched.compose(
        composition.operations,
        composition.settings,
        image_size=composition.image_size,
    )
