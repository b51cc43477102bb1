"""2-D convolutions, and the max-pool, whose gradients suit the device.

The mathematics is that of `nn.Conv`. What differs is what XLA is given:

direct: one convolution forward, one for each gradient, as autodiff has it. For
  accelerators.
cpu: XLA's CPU compiler is an order of magnitude slower for convolutions with outputs of
  at most 2x2 pixels than for matrix products, and two to four times slower for
  gradients of kernels; both become matrix products. Other convolutions stay.

The gradient of a kernel can leave a bfloat16 convolution in float32. With the batch
split over devices XLA sums gradients right behind the convolution, so in its dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

FORMULATIONS = ("direct", "cpu")
GRADIENT_DTYPES = ("float32", "bfloat16")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Copies of the input are made for so many images at a time that they stay in the cache.
_CHUNK_BYTES = 4 * 2**20
# A chunk's copies are at least so many times as large as the gradient it is added to.
_LEAST_CHUNK = 2
# Outputs of this side or smaller are slow as convolutions on CPUs.
_SMALL_SIDE = 2


class Conv2d(nn.Module):
    """A bias-free or biased convolution with the parameters of `nn.Conv`.

    Padded by (size - 1) // 2 on both sides for any stride. See `conv2d`.
    """

    filters: int
    size: int
    stride: int
    use_bias: bool
    dtype: Any
    kernel_init: Any
    formulation: str
    gradient_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, F] in `dtype`."""
        shape = (self.size, self.size, x.shape[-1], self.filters)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv2d(
            x.astype(self.dtype),
            kernel,
            stride=self.stride,
            padding=(self.size - 1) // 2,
            formulation=self.formulation,
            gradient_dtype=self.gradient_dtype,
        )
        if self.use_bias:
            bias = self.param(
                "bias", nn.initializers.zeros, (self.filters,), jnp.float32
            )
            y += bias.astype(self.dtype)
        return y


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    formulation: str = "direct",
    gradient_dtype: str = "float32",
) -> jax.Array:
    """Convolves images (cross-correlation, as neural nets have it).

    Differentiable once, in reverse.

    Args:
      x: [N, H, W, C], float32 or bfloat16: the dtype of the computation.
      kernel: float32 [K, K, C, F], rounded to the dtype of x.
      stride: of both sides.
      padding: zeros on all four sides, less than K.
      formulation: 'direct' or 'cpu'; equal up to rounding.
      gradient_dtype: in which the kernel's gradient leaves a bfloat16 convolution and
        is summed over devices: 'float32', or 'bfloat16', which halves what they
        exchange. The gradient that comes out is float32 with either.

    Returns:
      [N, (H + 2 padding - K) // stride + 1, ..., F] in the dtype of x.

    Raises:
      ValueError: an unknown formulation or gradient_dtype.
    """
    for name, value, allowed in (
        ("formulation", formulation, FORMULATIONS),
        ("gradient_dtype", gradient_dtype, GRADIENT_DTYPES),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
    return _conv2d(x, kernel, stride, padding, formulation, gradient_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: int,
    formulation: str,
    gradient_dtype: str,
) -> jax.Array:
    convolve = _convolve
    if formulation == "cpu" and _is_small(x.shape, kernel.shape, stride, padding):
        convolve = _convolve_patches
    return convolve(x, kernel.astype(x.dtype), stride, padding)


def _forward(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: int,
    formulation: str,
    gradient_dtype: str,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _conv2d(x, kernel, stride, padding, formulation, gradient_dtype)
    return y, (x, kernel)


def _backward(
    stride: int,
    padding: int,
    formulation: str,
    gradient_dtype: str,
    saved: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dtype = jnp.float32 if gradient_dtype == "float32" else x.dtype
    convolve, kernel_gradient = _convolve, _kernel_gradient
    if formulation == "cpu":
        kernel_gradient = _kernel_gradient_by_products
        if _is_small(x.shape, kernel.shape, stride, padding):
            convolve = _convolve_patches
    input_gradient = jax.linear_transpose(
        lambda x: convolve(x, kernel.astype(x.dtype), stride, padding), x
    )
    dx = input_gradient(g)[0]
    dk = kernel_gradient(x, g, kernel.shape[0], stride, padding, dtype)
    return dx, dk.astype(kernel.dtype)


_conv2d.defvjp(_forward, _backward)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=_LAYOUT,
    )


def _kernel_gradient(
    x: jax.Array, g: jax.Array, size: int, stride: int, padding: int, dtype: Any
) -> jax.Array:
    """Gradient [K, K, C, F] in `dtype` as one convolution of x with g.

    C and F take the places of batch and filters, and the images are summed over.
    """
    ends = [
        size + (outputs - 1) * stride - inputs - padding
        for inputs, outputs in zip(x.shape[1:3], g.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        [(padding, end) for end in ends],
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=dtype,
    )


def max_pool_by_comparisons(
    x: jax.Array,
    window: tuple[int, int],
    *,
    strides: tuple[int, int],
    padding: str | tuple[tuple[int, int], tuple[int, int]],
) -> jax.Array:
    """`nn.max_pool` of [N, H, W, C], with a gradient that is fast on CPUs.

    As there, the gradient goes to the first of several largest values.
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
    """For each place in a window, row by row, what all windows have there."""
    ends = [n - size + 1 for n, size in zip(x.shape[1:3], window, strict=True)]
    return [
        x[:, i : ends[0] + i : strides[0], j : ends[1] + j : strides[1]]
        for i in range(window[0])
        for j in range(window[1])
    ]


def _is_small(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: int
) -> bool:
    """Whether a convolution wider than 1x1 is slow on CPUs, with its gradient."""
    size, side = kernel_shape[0], min(x_shape[1:3])
    outputs = (side + 2 * padding - size) // stride + 1
    return size > 1 and (side < size or outputs <= _SMALL_SIDE)


def _patches(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """What each output pixel sees: [N, H, W, C] to [N, H', W', K * K, C]."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return jnp.stack(_views(x, (size, size), (stride, stride)), axis=3)


def _convolve_patches(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> jax.Array:
    """The convolution as one matrix product."""
    patches = _patches(x, kernel.shape[0], stride, padding)
    return lax.dot_general(
        patches.reshape(*patches.shape[:3], -1),
        kernel.reshape(-1, kernel.shape[-1]),
        (((3,), (0,)), ((), ())),
    )


def _kernel_gradient_by_products(
    x: jax.Array, g: jax.Array, size: int, stride: int, padding: int, dtype: Any
) -> jax.Array:
    """Gradient [K, K, C, F] in `dtype` as a sum of matrix products.

    Chunks take every n-th image, not a run of them: with the images split over devices
    each device then has its part of every chunk.
    """
    channels, filters = x.shape[-1], g.shape[-1]
    by_patches = size * size * channels
    by_axes = size * (channels + filters)
    of_chunk, floats = _gradient_by_patches, by_patches
    if stride == 1 and by_axes < by_patches:
        of_chunk, floats = _gradient_by_axes, by_axes
    chunk = _chunk_size(
        len(x), floats * g[0, ..., 0].size, size * size * channels * filters
    )
    num_chunks = len(x) // chunk
    if num_chunks == 1:
        return of_chunk(x, g, size, stride, padding).astype(dtype)
    xs = x.reshape(chunk, num_chunks, *x.shape[1:])
    gs = g.reshape(chunk, num_chunks, *g.shape[1:])

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        x, g = (lax.dynamic_index_in_dim(a, i, 1, keepdims=False) for a in (xs, gs))
        return total + of_chunk(x, g, size, stride, padding)

    zeros = jnp.zeros((size, size, channels, filters), jnp.float32)
    return lax.fori_loop(0, num_chunks, add, zeros).astype(dtype)


def _chunk_size(num_images: int, floats_per_image: int, floats_of_sum: int) -> int:
    """The largest divisor of `num_images` whose copies are within the budget."""
    budget = max(_CHUNK_BYTES // 4, _LEAST_CHUNK * floats_of_sum)
    most = min(num_images // 2, budget // floats_per_image)
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
    """The same with fewer copies, for stride 1.

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
