"""Public names of the augmentations in JAX, for use outside training.

Images are float32 [N, H, W, 3] in [0, 1], factors and sigmas float32 [N], the draws of
a random operation float32 [N, count] (`draws.py`). `views/device.py` documents and
computes each operation, on planes; nothing moves between devices when N is split over
them. The same names for single images on the host are in `augment`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from simclr_jax.data.sampling import boxes, order
from simclr_jax.data.views import device


def _on_images(function: Callable[..., device.Planes]) -> Callable[..., jax.Array]:
    """Turns an operation on planes into one on images [N, H, W, 3]."""

    @functools.wraps(function)
    def operation(images: jax.Array, *arguments: Any, **settings: Any) -> jax.Array:
        planes = function(device.to_planes(images), *arguments, **settings)
        return device.from_planes(planes)

    return operation


adjust_brightness = _on_images(device.adjust_brightness)
adjust_contrast = _on_images(device.adjust_contrast)
adjust_saturation = _on_images(device.adjust_saturation)
adjust_hue = _on_images(device.adjust_hue)
to_grayscale = _on_images(device.to_grayscale)
gaussian_blur = _on_images(device.gaussian_blur)
sobel = _on_images(device.sobel)
crop_and_resize = _on_images(device.crop_and_resize)
random_flip = _on_images(device.random_flip)
color_jitter = _on_images(device.color_jitter)
random_grayscale = _on_images(device.random_grayscale)
random_blur = _on_images(device.random_blur)
random_rotation = _on_images(device.random_rotation)
random_cutout = _on_images(device.random_cutout)
random_noise = _on_images(device.random_noise)
random_sobel = _on_images(device.random_sobel)


def random_resized_crop(
    images: jax.Array,
    key: order.Key,
    *,
    image_size: int,
    antialias: bool = False,
    **settings: Any,
) -> jax.Array:
    """A random part of each image at [image_size, image_size].

    Args:
      images: float32 [N, H, W, 3].
      key: uint32 arrays [N].
      image_size: side of the result in pixels.
      antialias: of the config's group `crop`; see `definition.crop_and_resize`.
      **settings: the rest of that group.

    Returns:
      float32 [N, image_size, image_size, 3]; bicubic overshoot is not clipped.
    """
    draws = boxes.BoxDraws((images.shape[1], images.shape[2]), **settings)
    size = (image_size, image_size)
    own = device.random_boxes(key, draws)
    return crop_and_resize(images, own, size, antialias=antialias)
