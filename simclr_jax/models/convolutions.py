"""2-D convolutions whose gradients suit the device.

The mathematics is that of `nn.Conv`. What differs is what XLA is given: 'direct' is one
convolution forward and one for each gradient, as autodiff has it, for accelerators; for
'cpu' see `cpu_convolutions`.

The gradient of a kernel can leave a bfloat16 convolution in float32. With the batch
split over devices XLA sums gradients right behind the convolution, so in its dtype.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from simclr_jax.models import cpu_convolutions

FORMULATIONS = ("direct", "cpu")
GRADIENT_DTYPES = ("float32", "bfloat16")
_LAYOUT = ("NHWC", "HWIO", "NHWC")


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
    if formulation == "cpu" and cpu_convolutions.is_product(
        x.shape, kernel.shape, stride, padding
    ):
        convolve = cpu_convolutions.convolve_patches
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
        kernel_gradient = cpu_convolutions.kernel_gradient
        if cpu_convolutions.is_product(x.shape, kernel.shape, stride, padding):
            convolve = cpu_convolutions.convolve_patches
    if formulation == "cpu" and stride == 1 and convolve is _convolve:
        dx = _input_gradient(g, kernel.astype(x.dtype), padding)
    else:
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


def _input_gradient(g: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    """Gradient of the input, for stride 1, in the layout of a forward convolution.

    Autodiff's names the kernel's axes otherwise, which XLA mends on CPUs outside of
    loops only: inside, such as over micro-batches, it is five times slower.
    """
    around = kernel.shape[0] - 1 - padding
    return _convolve(g, kernel[::-1, ::-1].swapaxes(2, 3), 1, around)
