"""2-D convolutions and the max-pool, in forms that suit the platform.

Equal to `nn.Conv` and `nn.max_pool` up to rounding. Accelerators compute one
convolution in the forward pass and one per gradient, CPUs the forms of
`cpu_convolutions`. GPUs take the three colours as four channels, the fourth zero, since
tensor cores read channels by fours at least. The form is chosen when a program is
lowered, so a program contains only the form of its platform, wherever it is lowered.
Forward and backward pass choose separately, so that automatic differentiation never
sees the choice.

The gradient of a kernel can leave a bfloat16 convolution in float32, except on GPUs,
whose tensor cores have no convolution from bfloat16 to float32: there it is rounded to
bfloat16 after its sum over images, which they accumulate in float32. With the batch
split over devices XLA sums gradients right after the convolution, so in its dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from simclr_jax.models import cpu_convolutions

GRADIENT_DTYPES = ("float32", "bfloat16")
_LAYOUT = ("NHWC", "HWIO", "NHWC")

Padding = str | tuple[tuple[int, int], tuple[int, int]]


# Channels of the images on GPUs.
_GPU_CHANNELS = 4


def _by_platform(
    *arrays: jax.Array,
    cpu: Callable[..., Any],
    direct: Callable[..., Any],
    gpu: Callable[..., Any] | None = None,
) -> Any:
    """The function of the platform that a program is lowered for, on the arrays."""
    gpu = gpu or direct
    return lax.platform_dependent(*arrays, cpu=cpu, cuda=gpu, rocm=gpu, default=direct)


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
    gradient_dtype: str = "float32",
) -> jax.Array:
    """Convolves images (cross-correlation, as neural nets have it).

    Differentiable once, in reverse mode.

    Args:
      x: [N, H, W, C], float32 or bfloat16: the dtype of the computation.
      kernel: float32 [K, K, C, F], rounded to the dtype of x.
      stride: of both sides.
      padding: zeros on all four sides, less than K.
      gradient_dtype: of the kernel's gradient of a bfloat16 convolution when it is
        summed over devices: 'float32', or 'bfloat16', which halves the traffic and is
        what GPUs always have. The gradient is cast to float32 with either.

    Returns:
      [N, (H + 2 padding - K) // stride + 1, ..., F] in the dtype of x.

    Raises:
      ValueError: an unknown gradient_dtype.
    """
    if gradient_dtype not in GRADIENT_DTYPES:
        raise ValueError(
            f"gradient_dtype={gradient_dtype!r}: must be one of "
            f"{', '.join(GRADIENT_DTYPES)}"
        )
    return _conv2d(x, kernel, stride, padding, gradient_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, gradient_dtype: str
) -> jax.Array:
    return _by_platform(
        x,
        kernel.astype(x.dtype),
        cpu=functools.partial(_convolve_on_cpu, stride=stride, padding=padding),
        gpu=functools.partial(_convolve_on_gpu, stride=stride, padding=padding),
        direct=functools.partial(_convolve, stride=stride, padding=padding),
    )


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, gradient_dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv2d(x, kernel, stride, padding, gradient_dtype), (x, kernel)


def _backward(
    stride: int,
    padding: int,
    gradient_dtype: str,
    saved: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    settings: dict[str, Any] = {
        "stride": stride,
        "padding": padding,
        "dtype": jnp.float32 if gradient_dtype == "float32" else x.dtype,
    }
    dx, dk = _by_platform(
        x,
        kernel.astype(x.dtype),
        g,
        cpu=functools.partial(_gradients_on_cpu, **settings),
        gpu=functools.partial(_gradients_on_gpu, **settings),
        direct=functools.partial(_gradients, **settings),
    )
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


def _convolve_on_cpu(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> jax.Array:
    known = cpu_convolutions.has_known_size(x.shape)
    if known and cpu_convolutions.is_product(x.shape, kernel.shape, stride, padding):
        return cpu_convolutions.convolve_patches(x, kernel, stride, padding)
    if cpu_convolutions.is_tiled(x, kernel.shape, stride, padding):
        return cpu_convolutions.convolve_tiles(x, kernel)
    return _convolve(x, kernel, stride, padding)


def _convolve_on_gpu(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int
) -> jax.Array:
    return _convolve(_padded(x, 3), _padded(kernel, 2), stride, padding)


def _padded(array: jax.Array, axis: int) -> jax.Array:
    """The array with four channels on an axis that has the three of an image."""
    missing = _GPU_CHANNELS - array.shape[axis]
    if missing != 1:
        return array
    return jnp.pad(array, [(0, missing * (i == axis)) for i in range(array.ndim)])


def _gradients(
    x: jax.Array, kernel: jax.Array, g: jax.Array, stride: int, padding: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Gradients of x, and of the kernel in `dtype`."""
    (dx,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(g)
    return dx, _kernel_gradient(x, g, kernel.shape[0], stride, padding, dtype)


def _gradients_on_gpu(
    x: jax.Array, kernel: jax.Array, g: jax.Array, stride: int, padding: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    channels = x.shape[-1]
    dx, dk = _gradients(
        _padded(x, 3), _padded(kernel, 2), g, stride, padding, dtype=x.dtype
    )
    return dx[..., :channels], dk[:, :, :channels].astype(dtype)


def _gradients_on_cpu(
    x: jax.Array, kernel: jax.Array, g: jax.Array, stride: int, padding: int, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    size = kernel.shape[0]
    if stride == 1 and not cpu_convolutions.is_product(
        x.shape, kernel.shape, stride, padding
    ):
        dx = _input_gradient(g, kernel, padding)
    else:
        (dx,) = jax.linear_transpose(
            lambda x: _convolve_on_cpu(x, kernel, stride, padding), x
        )(g)
    return dx, cpu_convolutions.kernel_gradient(x, g, size, stride, padding, dtype)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, size: int, stride: int, padding: int, dtype: Any
) -> jax.Array:
    """Gradient [K, K, C, F] in `dtype` as one convolution of x with g.

    C and F take the places of batch and filters; the sum runs over the images.
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


def _input_gradient(g: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Gradient of the input, for stride 1, in the layout of a forward convolution.

    Autodiff names the kernel's axes in another order, which XLA corrects on CPUs
    outside of loops only: inside, such as over micro-batches, it is five times slower.
    """
    around = kernel.shape[0] - 1 - padding
    return _convolve_on_cpu(g, kernel[::-1, ::-1].swapaxes(2, 3), 1, around)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """`nn.max_pool` of [N, H, W, C]; differentiable once, in reverse mode."""
    pools = _pools(window, strides, padding)
    return _by_platform(x, **pools)


def _pools(
    window: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> dict[str, Callable[[jax.Array], jax.Array]]:
    settings: dict[str, Any] = {"strides": strides, "padding": padding}

    def on_cpu(x: jax.Array) -> jax.Array:
        known = cpu_convolutions.has_known_size(x.shape)
        pool = cpu_convolutions.max_pool if known else nn.max_pool
        return pool(x, window, **settings)

    return {"cpu": on_cpu, "direct": lambda x: nn.max_pool(x, window, **settings)}


def _forward_pool(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> tuple[jax.Array, jax.Array]:
    return max_pool(x, window, strides, padding), x


def _backward_pool(
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding,
    x: jax.Array,
    g: jax.Array,
) -> tuple[jax.Array]:
    def gradient(pool: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
        return lambda x, g: jax.vjp(pool, x)[1](g)[0]

    pools = _pools(window, strides, padding)
    return (_by_platform(x, g, **{k: gradient(pool) for k, pool in pools.items()}),)


max_pool.defvjp(_forward_pool, _backward_pool)
