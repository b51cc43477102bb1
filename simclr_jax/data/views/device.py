"""SimCLR's augmentations on whole batches, for the XLA compiler.

The operations of `definition.py` without control flow: every image of a batch goes
through the same operations, and results that its draws do not ask for are discarded.

Images are three planes (r, g, b), each float32 [N, H, W], since the compiler works on
long rows and not on pixels of three numbers; `augment_jax.py` has the same operations
on images [N, H, W, 3]. Draws come from `draws.py`, one row [N, count] for each
operation.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.data.sampling import order
from simclr_jax.data.sampling.boxes import BoxDraws
from simclr_jax.data.sampling.draws import (
    between,
    by_operation,
    jitter_factors,
    jitter_order,
)
from simclr_jax.data.views.composition import Composition

# The reference's.
_GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)
_TABLE_SIZE = 1024  # sub-pixel positions of TensorFlow's bicubic weights
_TINY = 1e-30


class Planes(NamedTuple):
    """Red, green and blue of a batch, each [N, H, W]."""

    r: jax.Array
    g: jax.Array
    b: jax.Array

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "Planes":
        """Applies a function to each plane."""
        return Planes(*(function(plane) for plane in self))


def to_planes(images: jax.Array) -> Planes:
    """[N, H, W, 3] as planes."""
    return Planes(images[..., 0], images[..., 1], images[..., 2])


def from_planes(planes: Planes) -> jax.Array:
    """Planes as [N, H, W, 3]."""
    return jnp.stack(planes, axis=-1)


def clip(planes: Planes) -> Planes:
    """Clips to [0, 1]."""
    return planes.map(lambda x: jnp.minimum(jnp.maximum(x, 0.0), 1.0))


def _select(condition: jax.Array, first: Planes, second: Planes) -> Planes:
    """Image by image: `first` where the condition [N] holds."""
    condition = condition[:, None, None]
    return Planes(
        *(jnp.where(condition, a, b) for a, b in zip(first, second, strict=True))
    )


def _of_images(factor: jax.Array) -> jax.Array:
    """[N] -> [N, 1, 1]."""
    return factor[:, None, None]


# Operations with explicit factors -----------------------------------------------------


# Offsets of the bicubic taps from the pixel below a position.
_TAPS = (-1, 0, 1, 2)


def _keys_near(x: jax.Array) -> jax.Array:
    """Keys' cubic with a = -0.5 at distances up to 1."""
    return (1.5 * x - 2.5) * x * x + 1.0


def _keys_far(x: jax.Array) -> jax.Array:
    """Keys' cubic at distances from 1 to 2."""
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0


def resize_matrix(start: jax.Array, length: jax.Array, old: int, new: int) -> jax.Array:
    """Bicubic resizing of a part of an axis, as a matrix.

    TensorFlow's: half-pixel centres, no antialiasing, Keys' cubic with a = -0.5 looked
    up at 1024 positions, taps outside the part dropped and the others scaled to sum 1.

    Args:
      start: int32 [N], first pixel of the part.
      length: int32 [N], its pixels.
      old: size of the axis.
      new: size of the result.

    Returns:
      float32 [N, new, old].
    """
    start, length = (x.astype(jnp.float32)[:, None] for x in (start, length))
    centre = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (
        length / np.float32(new)
    ) - 0.5
    base = jnp.floor(centre)
    offset = jnp.rint((centre - base) * _TABLE_SIZE) / _TABLE_SIZE
    weights = [
        _keys_far(1.0 + offset),
        _keys_near(offset),
        _keys_near(1.0 - offset),
        _keys_far(2.0 - offset),
    ]
    inside = [(base + i >= 0.0) & (base + i < length) for i in _TAPS]
    weights = [jnp.where(ok, w, 0.0 * w) for ok, w in zip(inside, weights, strict=True)]
    total = weights[0] + weights[1] + weights[2] + weights[3]
    # How far each pixel is from the tap at `base`.
    pixels = np.arange(old, dtype=np.float32)
    place = jnp.subtract(pixels, (start + base)[..., None])
    result = 0.0 * place
    for i, weight in zip(_TAPS, weights, strict=True):
        result = jnp.where(place == i, (weight / total)[..., None], result)
    return result


def antialiased_matrix(
    start: jax.Array, length: jax.Array, old: int, new: int
) -> jax.Array:
    """As `resize_matrix`, as Pillow resizes: a wider cubic where the part shrinks."""
    start, length = (x.astype(jnp.float32)[:, None] for x in (start, length))
    scale = length / np.float32(new)
    centre = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale
    width = jnp.maximum(scale, 1.0)[..., None]
    # Of each pixel from the start of the part.
    place = np.arange(old, dtype=np.float32) + np.float32(0.5) - start
    distance = jnp.abs(place[:, None] - centre[..., None]) / width
    far = _keys_far(jnp.minimum(distance, 2.0))  # 0 from there on
    weights = jnp.where(distance < 1.0, _keys_near(distance), far)
    inside = (place > 0.0) & (place < length)
    weights = jnp.where(inside[:, None], weights, 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    # The default precision of accelerators would round pixels to about 8 bits.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _separable(planes: Planes, rows: jax.Array, columns: jax.Array) -> Planes:
    """Matrices [N, i, H] along height and [N, j, W] along width."""
    number, height, width = planes.r.shape
    # The three planes side by side: two matrix products instead of six.
    x = jnp.reshape(jnp.stack(planes, axis=2), (number, height, 3 * width))
    x = _matmul(rows, x)
    x = jnp.reshape(x, (number, -1, width))
    x = _matmul(x, jnp.swapaxes(columns, 1, 2))
    x = jnp.reshape(x, (number, rows.shape[1], 3, columns.shape[1]))
    return Planes(x[:, :, 0], x[:, :, 1], x[:, :, 2])


def crop_and_resize(
    planes: Planes, boxes: jax.Array, size: tuple[int, int], *, antialias: bool = False
) -> Planes:
    """Cuts boxes int32 [N, 4] (y, x, height, width) out and resizes them; unclipped.

    `antialias` resizes as Pillow does; see `definition.crop_and_resize`.
    """
    _, height, width = planes.r.shape
    matrix = antialiased_matrix if antialias else resize_matrix
    rows = matrix(boxes[:, 0], boxes[:, 2], height, size[0])
    columns = matrix(boxes[:, 1], boxes[:, 3], width, size[1])
    if not antialias:
        return _separable(planes, rows, columns)

    # Pillow resizes along the rows first, and clips what lies between.
    columns = jnp.swapaxes(columns, 1, 2)
    narrowed = clip(planes.map(lambda x: _matmul(x, columns)))
    return narrowed.map(lambda x: _matmul(rows, x))


def adjust_brightness(
    planes: Planes, factor: jax.Array, *, mode: str = "multiplicative"
) -> Planes:
    """Multiplies by the factors [N], or adds them when mode is 'additive'."""
    factor = _of_images(factor)
    if mode == "additive":
        return planes.map(lambda x: x + factor)
    return planes.map(lambda x: x * factor)


def adjust_contrast(planes: Planes, factor: jax.Array) -> Planes:
    """Scales the distance to each channel's mean by the factors [N]."""
    factor = _of_images(factor)

    def one(x: jax.Array) -> jax.Array:
        # In two steps: sums of rows run in parallel, one sum over all pixels is serial.
        mean = jnp.mean(x, axis=1, keepdims=True)
        mean = jnp.mean(mean, axis=2, keepdims=True)
        return (x - mean) * factor + mean

    return planes.map(one)


def _extremes(planes: Planes) -> tuple[jax.Array, jax.Array]:
    return (
        jnp.minimum(jnp.minimum(planes.r, planes.g), planes.b),
        jnp.maximum(jnp.maximum(planes.r, planes.g), planes.b),
    )


def adjust_saturation(planes: Planes, factor: jax.Array) -> Planes:
    """Multiplies S of HSV by the factors [N]; S stays within [0, 1].

    S is the chroma over the largest channel. That channel is unchanged, so the
    distances to it scale as S does.
    """
    low, high = _extremes(planes)
    chroma = high - low
    # Greys have chroma 0 and are unchanged by any scale.
    limit = high / jnp.maximum(chroma, _TINY)
    scale = jnp.minimum(_of_images(factor), limit)
    # A pixel without a positive channel has S = 0.
    scale = jnp.where(high > 0.0, scale, 0.0)
    return planes.map(lambda x: high - (high - x) * scale)


def adjust_hue(planes: Planes, turns: jax.Array) -> Planes:
    """Turns the hue by [N] full circles, from -1 to 1.

    The smallest and the largest value stay the same, but change channels.
    """
    r, g, b = planes
    low, high = _extremes(planes)
    chroma = high - low
    # In sixths of a circle (red 0, green 2, blue 4) times the chroma, which avoids a
    # division.
    hue = jnp.where(
        r == high,
        g - b,
        jnp.where(g == high, b - r + 2.0 * chroma, r - g + 4.0 * chroma),
    )
    hue = hue + _of_images(turns) * 6.0 * chroma
    hue = jnp.where(hue < 0.0, hue + 6.0 * chroma, hue)
    hue = jnp.where(hue >= 6.0 * chroma, hue - 6.0 * chroma, hue)

    def channel(distance: jax.Array) -> jax.Array:
        return low + jnp.minimum(jnp.maximum(distance, 0.0), chroma)

    return Planes(
        channel(jnp.abs(hue - 3.0 * chroma) - chroma),
        channel(2.0 * chroma - jnp.abs(hue - 2.0 * chroma)),
        channel(2.0 * chroma - jnp.abs(hue - 4.0 * chroma)),
    )


def to_grayscale(planes: Planes) -> Planes:
    """Luma (.2989 R + .5870 G + .1140 B) in three equal planes."""
    red, green, blue = _GRAY_WEIGHTS
    gray = red * planes.r + green * planes.g + blue * planes.b
    return Planes(gray, gray, gray)


def blur_matrix(sigma: jax.Array, size: int, radius: int) -> jax.Array:
    """Gaussian blur of an axis with zeros around, as a matrix [N, size, size]."""
    place = np.arange(size, dtype=np.float32)
    distance = np.abs(place[:, None] - place[None])
    weights = jnp.exp(-np.square(distance) / (2.0 * jnp.square(_of_images(sigma))))
    offsets = np.arange(-radius, radius + 1, dtype=np.float32)
    all_taps = jnp.exp(-np.square(offsets) / (2.0 * jnp.square(sigma[:, None])))
    total = jnp.sum(all_taps, axis=-1)
    return weights * (distance <= radius).astype(np.float32) / _of_images(total)


def gaussian_blur(planes: Planes, sigma: jax.Array, kernel_size: int) -> Planes:
    """Separable Gaussian blur with standard deviations [N]; see `augment`."""
    _, height, width = planes.r.shape
    rows = blur_matrix(sigma, height, kernel_size // 2)
    columns = blur_matrix(sigma, width, kernel_size // 2)
    return _separable(planes, rows, columns)


def sobel(planes: Planes) -> Planes:
    """Magnitude of the Sobel gradient of each channel, 0 (flat) to 1."""

    def smooth_and_differ(x: jax.Array, along: int) -> jax.Array:
        first = [slice(None)] * 3
        middle, last = list(first), list(first)
        first[along], middle[along], last[along] = (
            slice(None, -2),
            slice(1, -1),
            slice(2, None),
        )
        other = 3 - along
        difference = x[tuple(last)] - x[tuple(first)]
        before, at, after = ([slice(None)] * 3 for _ in range(3))
        before[other], at[other], after[other] = (
            slice(None, -2),
            slice(1, -1),
            slice(2, None),
        )
        return (
            difference[tuple(before)]
            + 2.0 * difference[tuple(at)]
            + difference[tuple(after)]
        )

    def one(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        dy, dx = smooth_and_differ(padded, 1), smooth_and_differ(padded, 2)
        # A step from 0 to 1 has gradient 4 in each direction.
        return jnp.minimum(jnp.sqrt(dy * dy + dx * dx) / 4.0, 1.0)

    return planes.map(one)


# Random operations --------------------------------------------------------------------


def random_boxes(key: order.Key, draws: BoxDraws) -> jax.Array:
    """Boxes int32 [..., 4] of views with keys [...], as `boxes.random_boxes`."""
    first = jnp.broadcast_to(jnp.asarray(draws.fallback), (*key.first.shape, 4))
    none_found = jnp.zeros(key.first.shape, bool)

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        number, _, found = state
        return (number < draws.max_attempts) & ~jnp.all(found)

    def attempt(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, result, found = state
        drawn, fits = draws.attempt(key, number[None], jnp)
        drawn, fits = drawn[..., 0, :], fits[..., 0]
        result = jnp.where((fits & ~found)[..., None], drawn, result)
        return number + 1, result, found | fits

    start = (jnp.uint32(0), first, none_found)
    return jax.lax.while_loop(unfinished, attempt, start)[1]


def random_flip(planes: Planes, u: jax.Array, *, probability: float) -> Planes:
    """Mirrors left and right."""
    flipped = planes.map(lambda x: jnp.flip(x, 2))
    return _select(u[:, 0] < probability, flipped, planes)


def color_jitter(
    planes: Planes,
    u: jax.Array,
    *,
    probability: float,
    brightness_mode: str,
    **ranges: float,
) -> Planes:
    """The four adjustments in each image's order, clipped after each."""
    bright, contrast, saturation, turns = jitter_factors(
        u, brightness_mode=brightness_mode, **ranges
    )
    order = jnp.argsort(jitter_order(u), axis=-1)
    result = planes
    for place in range(4):
        now = order[:, place]
        adjusted = adjust_hue(result, turns)
        for number, other in (
            (0, adjust_brightness(result, bright, mode=brightness_mode)),
            (1, adjust_contrast(result, contrast)),
            (2, adjust_saturation(result, saturation)),
        ):
            adjusted = _select(now == number, other, adjusted)
        result = clip(adjusted)
    return _select(u[:, 0] < probability, result, planes)


def random_grayscale(planes: Planes, u: jax.Array, *, probability: float) -> Planes:
    """Removes the colours."""
    return _select(u[:, 0] < probability, to_grayscale(planes), planes)


def random_blur(
    planes: Planes,
    u: jax.Array,
    *,
    probability: float,
    sigma_min: float,
    sigma_max: float,
    kernel_fraction: float,
) -> Planes:
    """Gaussian blur; the kernel is `kernel_fraction` of the images' height."""
    kernel_size = int(np.float32(planes.r.shape[1]) * np.float32(kernel_fraction))
    sigma = between(u[:, 1], sigma_min, sigma_max)
    # Bicubic overshoot is cut off first: it would spread.
    blurred = gaussian_blur(clip(planes), sigma, kernel_size)
    return _select(u[:, 0] < probability, blurred, planes)


def random_rotation(planes: Planes, u: jax.Array, *, probability: float) -> Planes:
    """Turns square images by 0, 90, 180 or 270 degrees with equal probability."""
    quarters = jnp.floor(u[:, 1] * 4.0)
    result, turned = planes, planes
    for number in (1, 2, 3):
        turned = turned.map(lambda x: jnp.flip(jnp.swapaxes(x, 1, 2), 1))
        result = _select(quarters == number, turned, result)
    return _select(u[:, 0] < probability, result, planes)


def random_cutout(
    planes: Planes,
    u: jax.Array,
    *,
    probability: float,
    size_fraction: float,
) -> Planes:
    """Blackens a square, its centre anywhere, its side a fraction of the image's."""

    def covered(u: jax.Array, extent: int) -> jax.Array:
        middle = np.arange(extent, dtype=np.float32) + np.float32(0.5)
        return jnp.abs(middle - u[:, None] * extent) < size_fraction * extent / 2

    _, height, width = planes.r.shape
    hole = covered(u[:, 1], height)[:, :, None] & covered(u[:, 2], width)[:, None, :]
    hole = hole & (u[:, 0] < probability)[:, None, None]
    return planes.map(lambda x: jnp.where(hole, 0.0, x))


def _normal(u: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [N, *shape]; two uniform numbers [N, 2] seed each image's."""
    words = (u * 2.0**24).astype(jnp.uint32)
    keys = jax.vmap(lambda word: jax.random.wrap_key_data(word, impl="threefry2x32"))
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys(words))


def random_noise(
    planes: Planes,
    u: jax.Array,
    *,
    probability: float,
    stddev_min: float,
    stddev_max: float,
) -> Planes:
    """Adds Gaussian noise; the result is clipped to [0, 1]."""
    stddev = _of_images(between(u[:, 1], stddev_min, stddev_max))
    _, height, width = planes.r.shape
    noise = to_planes(_normal(u[:, 2:], (height, width, 3)))
    noisy = Planes(*(x + stddev * n for x, n in zip(planes, noise, strict=True)))
    return _select(u[:, 0] < probability, clip(noisy), planes)


def random_sobel(planes: Planes, u: jax.Array, *, probability: float) -> Planes:
    """Replaces the images by their edges."""
    return _select(u[:, 0] < probability, sobel(planes), planes)


# Composition --------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[..., Planes]] = {
    "flip": random_flip,
    "color_jitter": color_jitter,
    "grayscale": random_grayscale,
    "blur": random_blur,
    "rotation": random_rotation,
    "cutout": random_cutout,
    "noise": random_noise,
    "sobel": random_sobel,
}

Views = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


def compose(composition: Composition) -> Views:
    """Joins operations into a function of a batch; see `definition.compose`.

    Returns:
      views(images uint8 [N, H, W, 3], draws [N, D], boxes [N, 4] or None) -> uint8
      [N, S, S, 3]. Without boxes the images have size S, and 'crop' is left out.
    """
    size = (composition.image_size, composition.image_size)

    def views(
        images: jax.Array, draws: jax.Array, boxes: jax.Array | None
    ) -> jax.Array:
        planes = to_planes(images).map(lambda x: x.astype(jnp.float32) / 255.0)
        # Also without 'crop': the box of the whole image makes it a view's size.
        if boxes is not None:
            planes = crop_and_resize(
                planes, boxes, size, antialias=composition.antialias
            )
        for name, u in by_operation(draws, composition.operations).items():
            if name != "crop":
                planes = OPERATIONS[name](planes, u, **composition.settings[name])
        levels = clip(planes).map(lambda x: jnp.rint(x * 255.0))
        return from_planes(levels).astype(jnp.uint8)

    return views
