"""SimCLR's augmentations on accelerators: the operations of `augment.py`, batched.

Images are float32 [N, H, W, 3] in [0, 1], factors and sigmas float32 [N], the draws of
a random operation float32 [N, count] (`draws.py`). All of it is `batched.py`, run by
JAX; nothing moves between devices when N is split over them.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.data import batched, boxes, order
from simclr_jax.data.composition import Composition


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    # The default precision of accelerators would round pixels to 8 bits or so.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _normal(u: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    words = (u * 2.0**24).astype(jnp.uint32)
    keys = jax.vmap(lambda word: jax.random.wrap_key_data(word, impl="threefry2x32"))
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys(words))


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


BACKEND = batched.Backend(
    numpy=SimpleNamespace(
        **{name: getattr(jnp, name) for name in batched.NUMPY_NAMES},
    ),
    cast=lambda array, dtype: array.astype(dtype),
    matmul=_matmul,
    normal=_normal,
)

adjust_brightness = batched.bind(batched.adjust_brightness, BACKEND)
adjust_contrast = batched.bind(batched.adjust_contrast, BACKEND)
adjust_saturation = batched.bind(batched.adjust_saturation, BACKEND)
adjust_hue = batched.bind(batched.adjust_hue, BACKEND)
to_grayscale = batched.bind(batched.to_grayscale, BACKEND)
gaussian_blur = batched.bind(batched.gaussian_blur, BACKEND)
sobel = batched.bind(batched.sobel, BACKEND)
crop_and_resize = batched.bind(batched.crop_and_resize, BACKEND)
random_flip = batched.bind(batched.random_flip, BACKEND)
color_jitter = batched.bind(batched.color_jitter, BACKEND)
random_grayscale = batched.bind(batched.random_grayscale, BACKEND)
random_blur = batched.bind(batched.random_blur, BACKEND)
random_rotation = batched.bind(batched.random_rotation, BACKEND)
random_cutout = batched.bind(batched.random_cutout, BACKEND)
random_noise = batched.bind(batched.random_noise, BACKEND)
random_sobel = batched.bind(batched.random_sobel, BACKEND)


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
        xp=BACKEND,
    )
