"""SimCLR's augmentations as TensorFlow operations on single images (paper appendix A).

The readable definition, one image at a time. There are operations with explicit factors
(`adjust_hue`, `gaussian_blur`, ...) and random operations `name(image, u, **settings)`,
which compute factors from uniform numbers u (`draws.py`). Images are float32 [H, W, 3]
in [0, 1] unless the docstring differs. `OPERATIONS` maps the names in the config to the
random operations, which can be composed in any order. `compiled.py` and `device.py` are
faster forms of the same operations.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from simclr_jax.data.sampling import boxes, order
from simclr_jax.data.sampling.draws import (
    between,
    by_operation,
    jitter_factors,
    jitter_order,
)
from simclr_jax.data.tf_cpu import tf

Settings = Mapping[str, Any]
_GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)  # as tf.image.rgb_to_grayscale


# Operations with explicit factors -----------------------------------------------------


def to_float(image: tf.Tensor) -> tf.Tensor:
    """uint8 [0, 255] to float32 [0, 1]; floats pass."""
    return tf.image.convert_image_dtype(image, tf.float32)


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """float32 [0, 1] to the nearest of 256 levels; values outside are clipped."""
    return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)


def crop_and_resize(
    image: tf.Tensor,
    box: Sequence[tf.Tensor | int],
    size: Sequence[int],
    *,
    antialias: bool = False,
) -> tf.Tensor:
    """Cuts a box out and resizes it by bicubic interpolation.

    Args:
      image: [H, W, C], uint8 or float32.
      box: (y, x, height, width) in pixels.
      size: (height, width) of the result.
      antialias: False takes four taps along each axis, as the reference does; True
        resizes as Pillow, whose cubic is wider where the image shrinks.

    Returns:
      float32 [*size, C]. Interpolation can overshoot [0, 1]; it is not clipped here.
    """
    y, x, height, width = box
    crop = to_float(tf.image.crop_to_bounding_box(image, y, x, height, width))
    if not antialias:
        return tf.image.resize(crop, size, method="bicubic")
    # Pillow resizes along the rows first, and clips what lies between.
    crop = tf.image.resize(crop, (height, size[1]), method="bicubic", antialias=True)
    crop = tf.clip_by_value(crop, 0.0, 1.0)
    return tf.image.resize(crop, size, method="bicubic", antialias=True)


def adjust_brightness(
    image: tf.Tensor, factor: tf.Tensor | float, *, mode: str = "multiplicative"
) -> tf.Tensor:
    """Multiplies by the factor, or adds it when mode is 'additive'; not clipped."""
    return image + factor if mode == "additive" else image * factor


def adjust_contrast(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Scales the distance to each channel's mean; not clipped."""
    return tf.image.adjust_contrast(image, factor)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Multiplies S of HSV, which stays within [0, 1]."""
    return tf.image.adjust_saturation(image, factor)


def adjust_hue(image: tf.Tensor, delta: tf.Tensor | float) -> tf.Tensor:
    """Turns the hue by delta full circles."""
    return tf.image.adjust_hue(image, delta)


def to_grayscale(image: tf.Tensor) -> tf.Tensor:
    """Luma (.2989 R + .5870 G + .1140 B) in three equal channels."""
    gray = tf.tensordot(image, tf.constant(_GRAY_WEIGHTS), axes=1)
    return tf.repeat(gray[..., None], 3, axis=-1)


def gaussian_blur(
    image: tf.Tensor, sigma: tf.Tensor | float, kernel_size: tf.Tensor | int
) -> tf.Tensor:
    """Separable Gaussian blur with zeros around the image, as in the reference.

    Args:
      image: [H, W, C].
      sigma: standard deviation in pixels.
      kernel_size: nominal; the taps are 2 * (kernel_size // 2) + 1.
    """
    radius = kernel_size // 2
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
    taps = tf.exp(-tf.square(offsets) / (2.0 * tf.square(sigma)))
    taps = taps / tf.reduce_sum(taps)
    channels = image.shape[-1]
    for shape in ((1, -1, 1, 1), (-1, 1, 1, 1)):
        kernel = tf.tile(tf.reshape(taps, shape), (1, 1, channels, 1))
        image = tf.nn.depthwise_conv2d(image[None], kernel, (1, 1, 1, 1), "SAME")[0]
    return image


def sobel(image: tf.Tensor) -> tf.Tensor:
    """Magnitude of the Sobel gradient of each channel, 0 (flat) to 1."""
    edges = tf.image.sobel_edges(image[None])[0]
    # A step from 0 to 1 has gradient 4 in each direction.
    return tf.clip_by_value(tf.norm(edges, axis=-1) / 4.0, 0.0, 1.0)


# Random operations --------------------------------------------------------------------


def _with_probability(
    probability: float,
    u: tf.Tensor,
    operation: Callable[[], tf.Tensor],
    image: tf.Tensor,
) -> tf.Tensor:
    """Runs `operation` where u < probability; without a branch for 0 and 1."""
    if probability >= 1:
        return operation()
    if probability <= 0:
        return image
    return tf.cond(u < probability, operation, lambda: image)


def random_crop_box(
    shape: tf.Tensor, seed: tf.Tensor, **settings: Any
) -> list[tf.Tensor]:
    """Draws a box (y, x, height, width) in an image.

    Args:
      shape: (height, width, ...) of the image.
      seed: integers [2], of which the lower 32 bits are the key of the view.
      **settings: the config's group `augment.crop`, without `antialias`; see
        `boxes.BoxDraws`.
    """

    def draw(shape: np.ndarray, seed: np.ndarray) -> np.ndarray:
        words = (seed.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)
        box_draws = boxes.BoxDraws((shape[0], shape[1]), **settings)
        return boxes.random_boxes(order.Key(words[:1], words[1:]), box_draws)[0]

    box = tf.numpy_function(draw, [shape, seed], tf.int32, stateful=False)
    return tf.unstack(tf.ensure_shape(box, 4))


def random_resized_crop(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    image_size: int,
    antialias: bool = False,
    **settings: Any,
) -> tf.Tensor:
    """A random part of the image at [image_size, image_size]; see `random_crop_box`."""
    box = random_crop_box(tf.shape(image), seed, **settings)
    size = (image_size, image_size)
    return crop_and_resize(image, box, size, antialias=antialias)


def random_flip(image: tf.Tensor, u: tf.Tensor, *, probability: float) -> tf.Tensor:
    """Mirrors left and right."""
    return _with_probability(probability, u[0], lambda: tf.reverse(image, [1]), image)


def color_jitter(
    image: tf.Tensor,
    u: tf.Tensor,
    *,
    probability: float,
    brightness_mode: str,
    **ranges: float,
) -> tf.Tensor:
    """Brightness, contrast, saturation and hue, in random order, clipped after each.

    Args:
      image: the image.
      u: float32 [9].
      probability: that the image is changed.
      brightness_mode: 'multiplicative' or 'additive'.
      **ranges: the other arguments of `draws.jitter_factors`.
    """
    bright, contrast, saturation, turns = jitter_factors(
        u, brightness_mode=brightness_mode, **ranges
    )
    order = tf.argsort(jitter_order(u))

    def jitter() -> tf.Tensor:
        result = image
        for place in range(4):
            operations = (
                lambda x=result: adjust_brightness(x, bright, mode=brightness_mode),
                lambda x=result: adjust_contrast(x, contrast),
                lambda x=result: adjust_saturation(x, saturation),
                lambda x=result: adjust_hue(x, turns),
            )
            result = tf.switch_case(order[place], operations)
            result = tf.clip_by_value(result, 0.0, 1.0)
        return result

    return _with_probability(probability, u[0], jitter, image)


def random_grayscale(
    image: tf.Tensor, u: tf.Tensor, *, probability: float
) -> tf.Tensor:
    """Removes the colours."""
    return _with_probability(probability, u[0], lambda: to_grayscale(image), image)


def random_blur(
    image: tf.Tensor,
    u: tf.Tensor,
    *,
    probability: float,
    sigma_min: float,
    sigma_max: float,
    kernel_fraction: float,
) -> tf.Tensor:
    """Gaussian blur; the kernel is `kernel_fraction` of the image's height."""
    sigma = between(u[1], sigma_min, sigma_max)
    height = tf.cast(tf.shape(image)[0], tf.float32)
    kernel_size = tf.cast(height * kernel_fraction, tf.int32)

    def blur() -> tf.Tensor:
        # Bicubic overshoot is cut off first: it would spread.
        clipped = tf.clip_by_value(image, 0.0, 1.0)
        return gaussian_blur(clipped, sigma, kernel_size)

    return _with_probability(probability, u[0], blur, image)


def random_rotation(image: tf.Tensor, u: tf.Tensor, *, probability: float) -> tf.Tensor:
    """Turns by 0, 90, 180 or 270 degrees with equal probability."""
    quarter_turns = tf.cast(u[1] * 4.0, tf.int32)
    return _with_probability(
        probability, u[0], lambda: tf.image.rot90(image, quarter_turns), image
    )


def random_cutout(
    image: tf.Tensor, u: tf.Tensor, *, probability: float, size_fraction: float
) -> tf.Tensor:
    """Blackens a square, its centre anywhere, its side a fraction of the image's."""

    def covered(u: tf.Tensor, extent: tf.Tensor) -> tf.Tensor:
        extent = tf.cast(extent, tf.float32)
        distance = tf.abs(tf.range(extent) + 0.5 - u * extent)
        return distance < size_fraction * extent / 2

    def cut() -> tf.Tensor:
        shape = tf.shape(image)
        hole = covered(u[1], shape[0])[:, None] & covered(u[2], shape[1])[None]
        return tf.where(hole[..., None], 0.0, image)

    return _with_probability(probability, u[0], cut, image)


def normal_pixels(u: tf.Tensor, shape: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Standard normal numbers, seeded by two uniform ones [2]."""
    seed = tf.cast(u * 2.0**24, tf.int32)
    return tf.random.stateless_normal(shape, seed, alg="philox")


def random_noise(
    image: tf.Tensor,
    u: tf.Tensor,
    *,
    probability: float,
    stddev_min: float,
    stddev_max: float,
) -> tf.Tensor:
    """Adds Gaussian noise; the result is clipped to [0, 1]."""
    stddev = between(u[1], stddev_min, stddev_max)

    def add() -> tf.Tensor:
        noise = normal_pixels(u[2:], tf.shape(image))
        return tf.clip_by_value(image + stddev * noise, 0.0, 1.0)

    return _with_probability(probability, u[0], add, image)


def random_sobel(image: tf.Tensor, u: tf.Tensor, *, probability: float) -> tf.Tensor:
    """Replaces the image by its edges."""
    return _with_probability(probability, u[0], lambda: sobel(image), image)


# Composition --------------------------------------------------------------------------

# All names in `config.augment.operations` except 'crop', which comes first or not at
# all.
OPERATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "flip": random_flip,
    "color_jitter": color_jitter,
    "grayscale": random_grayscale,
    "blur": random_blur,
    "rotation": random_rotation,
    "cutout": random_cutout,
    "noise": random_noise,
    "sobel": random_sobel,
}


def compose(
    operations: Sequence[str],
    settings: Mapping[str, Settings],
    *,
    image_size: int,
    antialias: bool = False,
) -> Callable[..., tf.Tensor]:
    """Joins operations into the function that computes one view.

    Args:
      operations: names in `draws.COUNTS`, in the order in which they apply; 'crop' is
        the first or none, and without it the box should be the whole image.
      settings: for each name the keyword arguments of its operation.
      image_size: side of the view in pixels.
      antialias: as in `crop_and_resize`.

    Returns:
      view(image [H, W, 3] uint8 or float32, box (y, x, height, width), u [D]) -> uint8
      [S, S, 3].
    """

    def view(
        image: tf.Tensor, box: Sequence[tf.Tensor | int], u: tf.Tensor
    ) -> tf.Tensor:
        size = (image_size, image_size)
        image = crop_and_resize(image, box, size, antialias=antialias)
        image = tf.ensure_shape(image, (image_size, image_size, 3))
        for name, numbers in by_operation(u, operations).items():
            if name != "crop":
                image = OPERATIONS[name](image, numbers, **settings[name])
        return to_uint8(image)

    return view


def center_crop_and_resize(
    image: tf.Tensor,
    *,
    image_size: int,
    crop_proportion: float,
    resize: str = "bicubic",
) -> tf.Tensor:
    """Evaluation preprocessing: the central square, resized, clipped to [0, 1].

    An image of the right size is unchanged if `crop_proportion` is 1. The arithmetic is
    that of `preprocessing.Preprocessing`, which needs no TensorFlow.

    Args:
      image: [H, W, 3], uint8 or float32.
      image_size: side of the result in pixels.
      crop_proportion: side of the crop as a fraction of the image's shorter side.
      resize: one of `preprocessing.RESIZES`.

    Returns:
      float32 [image_size, image_size, 3].
    """
    shape = tf.shape(image)
    short = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    side = tf.cast(tf.round(short * crop_proportion), tf.int32)  # half to even
    y, x = (shape[0] - side + 1) // 2, (shape[1] - side + 1) // 2
    size = (image_size, image_size)
    if resize == "bicubic_legacy":
        crop = tf.image.crop_to_bounding_box(image, y, x, side, side)
        resized = tf.raw_ops.ResizeBicubic(images=to_float(crop)[None], size=size)[0]
    else:
        antialias = resize == "bicubic_antialias"
        resized = crop_and_resize(image, (y, x, side, side), size, antialias=antialias)
    return tf.clip_by_value(resized, 0.0, 1.0)
