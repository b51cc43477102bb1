"""SimCLR's augmentations on whole batches, for the XLA compiler.

The arithmetic of `augment.py` once more, without control flow: every image of a batch
goes through the same operations, and what its draws do not ask for is computed and left
out. Written against the interface of NumPy, so that TensorFlow runs it on the host
(`augment_host.py`) and JAX on accelerators (`augment_jax.py`).

Images are three planes (r, g, b), each float32 [N, H, W]: the compiler works on long
rows, not on pixels of three numbers. `xp` is a `Backend`; draws are those of
`draws.py`, one row [N, count] for each operation.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simclr_jax.data.draws import Array, between, jitter_factors, jitter_order, split

# Where the reference has them too.
_GRAY_WEIGHTS = (0.2989, 0.5870, 0.1140)
_TABLE_SIZE = 1024  # sub-pixel positions of TensorFlow's bicubic weights
_TINY = 1e-30

# What a backend has to offer under NumPy's names and meanings.
NUMPY_NAMES = (
    "abs",
    "argsort",
    "exp",
    "flip",
    "floor",
    "maximum",
    "mean",
    "minimum",
    "pad",
    "reshape",
    "rint",
    "sqrt",
    "square",
    "stack",
    "sum",
    "swapaxes",
    "where",
)


class Backend(NamedTuple):
    """What the operations need of an array library.

    Attributes:
      numpy: `NUMPY_NAMES`.
      cast: (array, NumPy's dtype).
      matmul: (a [N, i, j], b [N, j, k]) in full float32 precision.
      normal: (u [N, 2] uniform, shape of one image) -> standard normal [N, *shape].
    """

    numpy: Any
    cast: Callable[[Array, Any], Array]
    matmul: Callable[[Array, Array], Array]
    normal: Callable[[Array, tuple[int, ...]], Array]


class Planes(NamedTuple):
    """Red, green and blue of a batch, each [N, H, W]."""

    r: Array
    g: Array
    b: Array

    def map(self, function: Callable[[Array], Array]) -> "Planes":
        """The function of each plane."""
        return Planes(*(function(plane) for plane in self))


def to_planes(images: Array) -> Planes:
    """[N, H, W, 3] as planes."""
    return Planes(images[..., 0], images[..., 1], images[..., 2])


def from_planes(planes: Planes, xp: Backend) -> Array:
    """Planes as [N, H, W, 3]."""
    return xp.numpy.stack(planes, axis=-1)


def clip(planes: Planes, xp: Backend) -> Planes:
    """Cut off at 0 and 1."""
    np_ = xp.numpy
    return planes.map(lambda x: np_.minimum(np_.maximum(x, 0.0), 1.0))


def _select(condition: Array, first: Planes, second: Planes, xp: Backend) -> Planes:
    """Image by image: `first` where the condition [N] holds."""
    condition = condition[:, None, None]
    return Planes(
        *(xp.numpy.where(condition, a, b) for a, b in zip(first, second, strict=True))
    )


def _of_images(factor: Array) -> Array:
    """[N] -> [N, 1, 1]."""
    return factor[:, None, None]


# Operations with explicit factors -----------------------------------------------------


# Of bicubic interpolation, as seen from the pixel below a position.
_TAPS = (-1, 0, 1, 2)


def _keys_near(x: Array) -> Array:
    """Keys' cubic with a = -0.5 at distances up to 1."""
    return (1.5 * x - 2.5) * x * x + 1.0


def _keys_far(x: Array) -> Array:
    """The same at distances from 1 to 2."""
    return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0


def resize_matrix(
    start: Array, length: Array, old: int, new: int, xp: Backend
) -> Array:
    """Bicubic resizing of a part of an axis, as a matrix.

    TensorFlow's: half-pixel centres, no antialiasing, Keys' cubic with a = -0.5 looked
    up at 1024 positions, taps outside the part dropped and the others scaled to sum 1.

    Args:
      start: int32 [N], first pixel of the part.
      length: int32 [N], its pixels.
      old: size of the axis.
      new: size of the result.
      xp: the backend.

    Returns:
      float32 [N, new, old].
    """
    np_ = xp.numpy
    start, length = (xp.cast(x, np.float32)[:, None] for x in (start, length))
    centre = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (
        length / np.float32(new)
    ) - 0.5
    base = np_.floor(centre)
    offset = np_.rint((centre - base) * _TABLE_SIZE) / _TABLE_SIZE
    weights = [
        _keys_far(1.0 + offset),
        _keys_near(offset),
        _keys_near(1.0 - offset),
        _keys_far(2.0 - offset),
    ]
    inside = [(base + i >= 0.0) & (base + i < length) for i in _TAPS]
    weights = [np_.where(ok, w, 0.0 * w) for ok, w in zip(inside, weights, strict=True)]
    total = weights[0] + weights[1] + weights[2] + weights[3]
    # How far each pixel is from the tap at `base`.
    place = np.arange(old, dtype=np.float32) - (start + base)[..., None]
    result = 0.0 * place
    for i, weight in zip(_TAPS, weights, strict=True):
        result = np_.where(place == i, (weight / total)[..., None], result)
    return result


def _separable(planes: Planes, rows: Array, columns: Array, xp: Backend) -> Planes:
    """Matrices [N, i, H] along height and [N, j, W] along width."""
    number, height, width = planes.r.shape
    np_ = xp.numpy
    # The three planes side by side: two products of matrices instead of six.
    x = np_.reshape(np_.stack(planes, axis=2), (number, height, 3 * width))
    x = xp.matmul(rows, x)
    x = np_.reshape(x, (number, -1, width))
    x = xp.matmul(x, np_.swapaxes(columns, 1, 2))
    x = np_.reshape(x, (number, rows.shape[1], 3, columns.shape[1]))
    return Planes(x[:, :, 0], x[:, :, 1], x[:, :, 2])


def crop_and_resize(
    planes: Planes, boxes: Array, size: tuple[int, int], xp: Backend
) -> Planes:
    """Cuts boxes int32 [N, 4] (y, x, height, width) out and resizes them; unclipped."""
    _, height, width = planes.r.shape
    rows = resize_matrix(boxes[:, 0], boxes[:, 2], height, size[0], xp)
    columns = resize_matrix(boxes[:, 1], boxes[:, 3], width, size[1], xp)
    return _separable(planes, rows, columns, xp)


def adjust_brightness(
    planes: Planes, factor: Array, xp: Backend, *, mode: str = "multiplicative"
) -> Planes:
    """Multiplies by the factors [N], or adds them when mode is 'additive'."""
    factor = _of_images(factor)
    if mode == "additive":
        return planes.map(lambda x: x + factor)
    return planes.map(lambda x: x * factor)


def adjust_contrast(planes: Planes, factor: Array, xp: Backend) -> Planes:
    """Scales the distance to each channel's mean by the factors [N]."""
    factor = _of_images(factor)

    def one(x: Array) -> Array:
        # In two steps: rows add up side by side, where one sum over all pixels would
        # wait for itself.
        mean = xp.numpy.mean(x, axis=1, keepdims=True)
        mean = xp.numpy.mean(mean, axis=2, keepdims=True)
        return (x - mean) * factor + mean

    return planes.map(one)


def _extremes(planes: Planes, xp: Backend) -> tuple[Array, Array]:
    np_ = xp.numpy
    return (
        np_.minimum(np_.minimum(planes.r, planes.g), planes.b),
        np_.maximum(np_.maximum(planes.r, planes.g), planes.b),
    )


def adjust_saturation(planes: Planes, factor: Array, xp: Backend) -> Planes:
    """Multiplies S of HSV by the factors [N]; S stays within [0, 1].

    S is the chroma over the largest channel, which stays as it is, so the distances to
    it scale as S does.
    """
    np_ = xp.numpy
    low, high = _extremes(planes, xp)
    chroma = high - low
    # Chroma is 0 in greys, which any scale leaves alone.
    limit = high / np_.maximum(chroma, _TINY)
    scale = np_.minimum(_of_images(factor), limit)
    # A pixel without a positive channel has S = 0.
    scale = np_.where(high > 0.0, scale, 0.0)
    return planes.map(lambda x: high - (high - x) * scale)


def adjust_hue(planes: Planes, turns: Array, xp: Backend) -> Planes:
    """Turns the hue by [N] full circles, from -1 to 1.

    The smallest and the largest channel keep their values; which they are changes.
    """
    np_ = xp.numpy
    r, g, b = planes
    low, high = _extremes(planes, xp)
    chroma = high - low
    # In sixths of a circle, red 0, green 2, blue 4, and all times the chroma, so that
    # nothing is divided.
    hue = np_.where(
        r == high,
        g - b,
        np_.where(g == high, b - r + 2.0 * chroma, r - g + 4.0 * chroma),
    )
    hue = hue + _of_images(turns) * 6.0 * chroma
    hue = np_.where(hue < 0.0, hue + 6.0 * chroma, hue)
    hue = np_.where(hue >= 6.0 * chroma, hue - 6.0 * chroma, hue)

    def channel(distance: Array) -> Array:
        return low + np_.minimum(np_.maximum(distance, 0.0), chroma)

    return Planes(
        channel(np_.abs(hue - 3.0 * chroma) - chroma),
        channel(2.0 * chroma - np_.abs(hue - 2.0 * chroma)),
        channel(2.0 * chroma - np_.abs(hue - 4.0 * chroma)),
    )


def to_grayscale(planes: Planes, xp: Backend) -> Planes:
    """Luma (.2989 R + .5870 G + .1140 B) in three equal planes."""
    del xp  # which the others need
    red, green, blue = _GRAY_WEIGHTS
    gray = red * planes.r + green * planes.g + blue * planes.b
    return Planes(gray, gray, gray)


def blur_matrix(sigma: Array, size: int, radius: int, xp: Backend) -> Array:
    """Gaussian blur of an axis with zeros around, as a matrix [N, size, size]."""
    np_ = xp.numpy
    place = np.arange(size, dtype=np.float32)
    distance = np.abs(place[:, None] - place[None])
    weights = np_.exp(-np.square(distance) / (2.0 * np_.square(_of_images(sigma))))
    offsets = np.arange(-radius, radius + 1, dtype=np.float32)
    all_taps = np_.exp(-np.square(offsets) / (2.0 * np_.square(sigma[:, None])))
    total = np_.sum(all_taps, axis=-1)
    return weights * (distance <= radius).astype(np.float32) / _of_images(total)


def gaussian_blur(
    planes: Planes, sigma: Array, kernel_size: int, xp: Backend
) -> Planes:
    """Separable Gaussian blur with standard deviations [N]; see `augment`."""
    _, height, width = planes.r.shape
    rows = blur_matrix(sigma, height, kernel_size // 2, xp)
    columns = blur_matrix(sigma, width, kernel_size // 2, xp)
    return _separable(planes, rows, columns, xp)


def sobel(planes: Planes, xp: Backend) -> Planes:
    """Magnitude of the Sobel gradient of each channel, 0 (flat) to 1."""
    np_ = xp.numpy

    def smooth_and_differ(x: Array, along: int) -> Array:
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

    def one(x: Array) -> Array:
        padded = np_.pad(x, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        dy, dx = smooth_and_differ(padded, 1), smooth_and_differ(padded, 2)
        # A step from 0 to 1 has gradient 4 in each direction.
        return np_.minimum(np_.sqrt(dy * dy + dx * dx) / 4.0, 1.0)

    return planes.map(one)


# Random operations --------------------------------------------------------------------


def random_flip(planes: Planes, u: Array, xp: Backend, *, probability: float) -> Planes:
    """Mirrors left and right."""
    flipped = planes.map(lambda x: xp.numpy.flip(x, 2))
    return _select(u[:, 0] < probability, flipped, planes, xp)


def color_jitter(
    planes: Planes,
    u: Array,
    xp: Backend,
    *,
    probability: float,
    brightness_mode: str,
    **ranges: float,
) -> Planes:
    """The four adjustments in an order of each image's own, clipped after each."""
    np_ = xp.numpy
    bright, contrast, saturation, turns = jitter_factors(
        u, brightness_mode=brightness_mode, **ranges
    )
    order = np_.argsort(jitter_order(u), axis=-1)
    result = planes
    for place in range(4):
        now = order[:, place]
        adjusted = adjust_hue(result, turns, xp)
        for number, other in (
            (0, adjust_brightness(result, bright, xp, mode=brightness_mode)),
            (1, adjust_contrast(result, contrast, xp)),
            (2, adjust_saturation(result, saturation, xp)),
        ):
            adjusted = _select(now == number, other, adjusted, xp)
        result = clip(adjusted, xp)
    return _select(u[:, 0] < probability, result, planes, xp)


def random_grayscale(
    planes: Planes, u: Array, xp: Backend, *, probability: float
) -> Planes:
    """Drops the colours."""
    return _select(u[:, 0] < probability, to_grayscale(planes, xp), planes, xp)


def random_blur(
    planes: Planes,
    u: Array,
    xp: Backend,
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
    blurred = gaussian_blur(clip(planes, xp), sigma, kernel_size, xp)
    return _select(u[:, 0] < probability, blurred, planes, xp)


def random_rotation(
    planes: Planes, u: Array, xp: Backend, *, probability: float
) -> Planes:
    """Turns square images by 0, 90, 180 or 270 degrees, each as likely."""
    np_ = xp.numpy
    quarters = np_.floor(u[:, 1] * 4.0)
    result, turned = planes, planes
    for number in (1, 2, 3):
        turned = turned.map(lambda x: np_.flip(np_.swapaxes(x, 1, 2), 1))
        result = _select(quarters == number, turned, result, xp)
    return _select(u[:, 0] < probability, result, planes, xp)


def random_cutout(
    planes: Planes,
    u: Array,
    xp: Backend,
    *,
    probability: float,
    size_fraction: float,
) -> Planes:
    """Blackens a square, its centre anywhere, its side a fraction of the image's."""
    np_ = xp.numpy

    def covered(u: Array, extent: int) -> Array:
        middle = np.arange(extent, dtype=np.float32) + np.float32(0.5)
        return np_.abs(middle - u[:, None] * extent) < size_fraction * extent / 2

    _, height, width = planes.r.shape
    hole = covered(u[:, 1], height)[:, :, None] & covered(u[:, 2], width)[:, None, :]
    hole = hole & (u[:, 0] < probability)[:, None, None]
    return planes.map(lambda x: np_.where(hole, 0.0, x))


def random_noise(
    planes: Planes,
    u: Array,
    xp: Backend,
    *,
    probability: float,
    stddev_min: float,
    stddev_max: float,
) -> Planes:
    """Adds Gaussian noise; the result is clipped to [0, 1]."""
    stddev = _of_images(between(u[:, 1], stddev_min, stddev_max))
    _, height, width = planes.r.shape
    noise = to_planes(xp.normal(u[:, 2:], (height, width, 3)))
    noisy = Planes(*(x + stddev * n for x, n in zip(planes, noise, strict=True)))
    return _select(u[:, 0] < probability, clip(noisy, xp), planes, xp)


def random_sobel(
    planes: Planes, u: Array, xp: Backend, *, probability: float
) -> Planes:
    """Replaces the images by their edges."""
    return _select(u[:, 0] < probability, sobel(planes, xp), planes, xp)


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

Settings = Mapping[str, Mapping[str, Any]]
Views = Callable[[Array, Array, Array | None], Array]


def compose(
    operations: Sequence[str], settings: Settings, *, image_size: int, xp: Backend
) -> Views:
    """Joins operations into a function of a batch; see `augment.compose`.

    Returns:
      views(images uint8 [N, H, W, 3], draws [N, D], boxes [N, 4] or None) -> uint8
      [N, S, S, 3]. Without boxes the images have size S, and 'crop' is left out.
    """

    def views(images: Array, draws: Array, boxes: Array | None) -> Array:
        planes = to_planes(images).map(lambda x: xp.cast(x, np.float32) / 255.0)
        # Also without 'crop': the box of the whole image makes it a view's size.
        if boxes is not None:
            planes = crop_and_resize(planes, boxes, (image_size, image_size), xp)
        for name, own in split(draws, operations).items():
            if name != "crop":
                planes = OPERATIONS[name](planes, own, xp, **settings[name])
        levels = clip(planes, xp).map(lambda x: xp.numpy.rint(x * 255.0))
        return xp.cast(from_planes(levels, xp), np.uint8)

    return views


def bind(function: Callable[..., Any], xp: Backend) -> Callable[..., Any]:
    """An operation on planes as one on images [N, H, W, 3], for one backend."""

    @functools.wraps(function)
    def operation(images: Array, *arguments: Any, **settings: Any) -> Array:
        planes = function(to_planes(images), *arguments, xp=xp, **settings)
        return from_planes(planes, xp)

    return operation
