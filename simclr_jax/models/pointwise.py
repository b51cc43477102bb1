"""A 1x1 convolution and the BatchNorm after it, without keeping what is between.

The convolution is a product y = x W of each pixel's K channels with a matrix. Mean and
variance of y over the pixels follow from the mean m and the covariance S of x,

    mean = m W,  var_c = W_c^T S W_c,

and so do the two sums that the gradient of BatchNorm needs, from the product of x with
the gradient g of the output, M = sum x^T g over the pixels:

    sum g y^ = (diag(W^T M) - mean sum g) / std,  y^ = (y - mean) / std.

With a the scale over the standard deviation, P pixels, and u = a sum(g y^) / (P std),

    gradient of x = g (a W)^T - x (W u W^T) - constant,
    gradient of W = a (M - m sum g - S W sum(g y^) / std).

So no pass but the forward convolution's own touches y, and the backward pass neither
keeps it nor computes it again. In a bottleneck block y is the widest tensor, four times
as wide as x: a ResNet-50 keeps a third less, and reads and writes a quarter less.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

# Name of what rematerialisation may keep: it is small, and takes a pass over the input
# and a message between devices to compute again.
COVARIANCE = "covariance"
# Of small matrices: the sums over pixels are computed as convolutions are.
_EXACT = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class Pointwise(NamedTuple):
    """The output of a 1x1 convolution of stride 1 that is not computed yet.

    Attributes:
      x: [N, H, W, K], in the dtype of the computation.
      kernel: [K, C] float32, rounded to the dtype of x.
    """

    x: jax.Array
    kernel: jax.Array


class LazyConvolution(nn.Module):
    """A 1x1 convolution for BatchNorm to compute, with the parameter of `Conv2d`."""

    filters: int
    dtype: Any
    kernel_init: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> Pointwise:
        """Takes [N, H, W, K]."""
        shape = (1, 1, x.shape[-1], self.filters)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        return Pointwise(x.astype(self.dtype), kernel[0, 0])


class Moments(NamedTuple):
    """Mean and biased variance of each channel, float32 [G, C], of G parts."""

    mean: jax.Array
    var: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    product: Pointwise,
    scale: jax.Array,
    bias: jax.Array,
    num_groups: int,
    epsilon: float,
) -> tuple[jax.Array, Moments]:
    """BatchNorm of a 1x1 convolution, in training.

    Differentiable once, in reverse mode; the moments have no gradient.

    Args:
      product: the convolution.
      scale: [C] float32.
      bias: [C] float32.
      num_groups: G, consecutive parts of the batch with moments of their own.
      epsilon: added to the variance.

    Returns:
      [N, H, W, C] in the dtype of x, and the moments of the convolution's output.
    """
    return _forward(product, scale, bias, num_groups, epsilon)[0]


def _forward(
    product: Pointwise,
    scale: jax.Array,
    bias: jax.Array,
    num_groups: int,
    epsilon: float,
) -> tuple[tuple[jax.Array, Moments], tuple[Any, ...]]:
    x = _in_parts(product.x, num_groups)
    kernel = product.kernel.astype(x.dtype).astype(jnp.float32)
    count = x[0, ..., 0].size
    m = jnp.mean(x.astype(jnp.float32), (1, 2, 3))
    covariance = _outer(x, x) / count - m[:, :, None] * m[:, None]
    covariance = checkpoint_name(covariance, COVARIANCE)
    mean = _EXACT("gk,kc->gc", m, kernel)
    s_w = _EXACT("gkl,lc->gkc", covariance, kernel)
    # Rounding can make it negative.
    var = jnp.maximum(0.0, jnp.sum(kernel * s_w, 1))
    per_std = lax.rsqrt(var + epsilon)
    a = per_std * scale
    y = _inner(x, kernel.astype(x.dtype)[None])
    y = (y.astype(jnp.float32) - _wide(mean)) * _wide(a) + bias
    saved = (product, scale, m, s_w, mean, per_std)
    return (y.astype(x.dtype).reshape(_shape(product)), Moments(mean, var)), saved


def _backward(
    num_groups: int,
    epsilon: float,
    saved: tuple[Any, ...],
    gradients: tuple[jax.Array, Moments],
) -> tuple[Pointwise, jax.Array, jax.Array]:
    product, scale, m, s_w, mean, per_std = saved
    x = _in_parts(product.x, num_groups)
    g = _in_parts(gradients[0], num_groups)
    kernel = product.kernel.astype(x.dtype).astype(jnp.float32)
    count = x[0, ..., 0].size
    a = per_std * scale
    outer = _outer(x, g)
    sum_g = jnp.sum(g.astype(jnp.float32), (1, 2, 3))
    sum_gy = per_std * (jnp.sum(kernel * outer, 1) - mean * sum_g)
    to_kernel = outer - m[:, :, None] * sum_g[:, None]
    to_kernel = a[:, None] * (to_kernel - s_w * (per_std * sum_gy)[:, None])
    u = a * per_std * sum_gy / count
    constant = _EXACT("kc,gc->gk", kernel, a * sum_g / count - u * mean)
    back = (kernel * a[:, None]).swapaxes(1, 2).astype(x.dtype)
    correction = _EXACT("kc,gc,lc->gkl", kernel, u, kernel).astype(x.dtype)
    to_x = _inner(g, back, jnp.float32) - _wide(constant)
    to_x = (to_x - _inner(x, correction).astype(jnp.float32)).astype(x.dtype)
    to_product = Pointwise(to_x.reshape(product.x.shape), jnp.sum(to_kernel, 0))
    return to_product, jnp.sum(sum_gy, 0), jnp.sum(sum_g, 0)


normalize.defvjp(_forward, _backward)


def _in_parts(x: jax.Array, num_groups: int) -> jax.Array:
    """[N, H, W, C] to [G, N / G, H, W, C]."""
    return x.reshape(num_groups, -1, *x.shape[1:])


def _shape(product: Pointwise) -> tuple[int, ...]:
    return (*product.x.shape[:-1], product.kernel.shape[-1])


def _wide(values: jax.Array) -> jax.Array:
    """[G, C] to [G, 1, 1, 1, C]."""
    return values[:, None, None, None]


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """Sums of the products of all pairs of channels: float32 [G, K, C]."""
    return jnp.einsum("gnhwk,gnhwc->gkc", x, y, preferred_element_type=jnp.float32)


def _inner(x: jax.Array, matrices: jax.Array, dtype: Any = None) -> jax.Array:
    """The product of each pixel with the matrix [K, C] of its part, or of all."""
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    if matrices.shape[0] == 1:
        return product("gnhwk,kc->gnhwc", x, matrices[0])
    return product("gnhwk,gkc->gnhwc", x, matrices)
