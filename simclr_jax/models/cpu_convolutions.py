"""Convolutions and the max-pool in forms that XLA compiles well for CPUs.

Compared with matrix products, XLA on CPUs is slow for convolutions with outputs of at
most 2x2 pixels, by orders of magnitude, and for gradients of kernels, by two to four
times. Here both are written as products, and so are 1x1 convolutions.
ResNet-50 at 64 pixels trains about four times as fast with these forms.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from simclr_jax.models import winograd

# Largest size of the copies of one chunk of images, so that they stay in the cache.
_CHUNK_BYTES = 4 * 2**20
# Smallest size of these copies, relative to the gradient to which a chunk adds.
_LEAST_TIMES_GRADIENT = 2
# Fewest images in a chunk: one for each of up to eight devices.
_LEAST_IMAGES = 8
# Convolutions with outputs of at most this side are slow on CPUs.
_SMALL_SIDE = 2


def max_pool(
    x: jax.Array,
    window: tuple[int, int],
    *,
    strides: tuple[int, int],
    padding: str | tuple[tuple[int, int], tuple[int, int]],
) -> jax.Array:
    """`nn.max_pool` of [N, H, W, C] by comparisons, whose gradient is fast on CPUs.

    The gradient goes to the first of several equal maxima, as in `nn.max_pool`.
    """
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    else:
        rows, columns = padding
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=lowest)
    views = _views(x, window, strides)
    return functools.reduce(
        lambda a, b: jnp.where((a >= b) | jnp.isnan(a), a, b), views
    )


def _views(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int]
) -> list[jax.Array]:
    """For each position in a window, row by row, the pixels of all windows there."""
    ends = [n - size + 1 for n, size in zip(x.shape[1:3], window, strict=True)]
    return [
        x[:, i : ends[0] + i : strides[0], j : ends[1] + j : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]


def has_known_size(x_shape: tuple[int, ...]) -> bool:
    """Whether [N, H, W, C] has numbers for H and W, on which these forms depend.

    Programs for images of any size are traced with symbols for them.
    """
    return not any(export.is_symbolic_dim(side) for side in x_shape[1:3])


def is_product(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: int
) -> bool:
    """Whether a convolution and its gradient are faster as products on CPUs."""
    size, side = kernel_shape[0], min(x_shape[1:3])
    outputs = (side + 2 * padding - size) // stride + 1
    return size == 1 or side < size or outputs <= _SMALL_SIDE


def _patches(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """The window of each output pixel: [N, H, W, C] to [N, H', W', K * K, C]."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return jnp.stack(_views(x, (size, size), (stride, stride)), axis=3)


def convolve_patches(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> jax.Array:
    """The convolution as one matrix product, whose transpose sums in float32."""
    patches = _patches(x.astype(jnp.float32), kernel.shape[0], stride, padding)
    y = lax.dot_general(
        patches.reshape(*patches.shape[:3], -1),
        kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32),
        (((3,), (0,)), ((), ())),
    )
    return y.astype(x.dtype)


def kernel_gradient(
    x: jax.Array, g: jax.Array, size: int, stride: int, padding: int, dtype: Any
) -> jax.Array:
    """Gradient [K, K, C, F] in `dtype` as a sum of matrix products.

    A chunk has every n-th image, not consecutive ones: with the images split over
    devices, each device then has its part of every chunk.
    """
    channels, filters = x.shape[-1], g.shape[-1]
    shape = (size, size, channels, filters)
    by_patches = size * size * channels
    by_axes = size * (channels + filters)
    gradient_of: Callable[[jax.Array, jax.Array], jax.Array]
    settings: dict[str, Any] = {"size": size, "stride": stride, "padding": padding}
    if is_tiled(x, shape, stride, padding):
        floats = winograd.COPIES * (channels + filters)
        gradient_of = winograd.kernel_gradient
    elif stride == 1 and by_axes < by_patches:
        gradient_of, floats = functools.partial(_gradient_by_axes, **settings), by_axes
    else:
        floats = by_patches
        gradient_of = functools.partial(_gradient_by_patches, **settings)
    chunk = _chunk_size(len(x), floats * g[0, ..., 0].size, math.prod(shape))
    num_chunks = len(x) // chunk
    if num_chunks == 1:
        return gradient_of(x, g).astype(dtype)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        parts = (_part(images, i, num_chunks) for images in (x, g))
        return total + gradient_of(*parts)

    zeros = jnp.zeros(shape, jnp.float32)
    return lax.fori_loop(0, num_chunks, add, zeros).astype(dtype)


def is_tiled(
    x: jax.Array, kernel_shape: tuple[int, ...], stride: int, padding: int
) -> bool:
    """Whether a convolution and its gradients are computed by tiles."""
    return (
        x.dtype == jnp.float32
        and not any(export.is_symbolic_dim(side) for side in x.shape[:3])
        and winograd.is_faster(x.shape, kernel_shape, stride, padding)
    )


def convolve_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A float32 convolution that `winograd.is_faster`, in chunks as its gradient."""
    points = winograd.transform_kernel(kernel)
    floats = winograd.COPIES * sum(kernel.shape[2:])
    chunk = _chunk_size(len(x), floats * x[0, ..., 0].size, points.size)
    num_chunks = len(x) // chunk
    if num_chunks == 1:
        return winograd.convolve(x, points)

    def fill(i: jax.Array, y: jax.Array) -> jax.Array:
        own = winograd.convolve(_part(x, i, num_chunks), points)
        return lax.dynamic_update_index_in_dim(y, own, i, 1)

    shape = (*x.shape[1:3], kernel.shape[-1])
    y = jnp.zeros((chunk, num_chunks, *shape), x.dtype)
    return lax.fori_loop(0, num_chunks, fill, y).reshape(len(x), *shape)


def _part(images: jax.Array, i: jax.Array, num_chunks: int) -> jax.Array:
    """Every `num_chunks`-th image, from number i."""
    parts = images.reshape(-1, num_chunks, *images.shape[1:])
    return lax.dynamic_index_in_dim(parts, i, 1, keepdims=False)


def _chunk_size(num_images: int, floats_per_image: int, floats_of_sum: int) -> int:
    """The largest divisor of `num_images` within the budget.

    Never all images: the inputs of a loop are computed once before it, whereas outside
    of a loop XLA recomputes all layers between two convolutions for each copy.
    """
    budget = max(_CHUNK_BYTES // 4, _LEAST_TIMES_GRADIENT * floats_of_sum)
    most = min(max(_LEAST_IMAGES, budget // floats_per_image), num_images // 2)
    return max(n for n in range(1, max(most, 1) + 1) if num_images % n == 0)


def _gradient_by_patches(
    x: jax.Array, g: jax.Array, size: int, stride: int, padding: int
) -> jax.Array:
    """Gradient [K, K, C, F], float32: one product of the patches of x with g."""
    patches = _patches(x, size, stride, padding)
    product = _product(patches.reshape(*patches.shape[:3], -1), g)
    return product.reshape(size, size, -1, g.shape[-1])


def _gradient_by_axes(
    x: jax.Array, g: jax.Array, size: int, stride: int, padding: int
) -> jax.Array:
    """As `_gradient_by_patches`, with fewer copies; for stride 1.

    x is shifted along its width and g, the other way, along its height: K copies of
    each instead of K * K of x.
    """
    height, width = x.shape[1], g.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (padding, padding), (0, 0)))
    shifted_x = jnp.stack([x[:, :, j : j + width] for j in range(size)], axis=3)
    rows = size - 1 - padding
    g = jnp.pad(g, ((0, 0), (rows, rows), (0, 0), (0, 0)))
    shifted_g = jnp.stack(
        [g[:, size - 1 - i : size - 1 - i + height] for i in range(size)], axis=3
    )
    product = _product(
        shifted_x.reshape(*shifted_x.shape[:3], -1),
        shifted_g.reshape(*shifted_g.shape[:3], -1),
    )
    return product.reshape(size, -1, size, g.shape[-1]).transpose(2, 0, 1, 3)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, H, W, A] and [N, H, W, B], summed over pixels: float32 [A, B]."""
    return lax.dot_general(
        a, b, (((0, 1, 2),) * 2, ((), ())), preferred_element_type=jnp.float32
    )
