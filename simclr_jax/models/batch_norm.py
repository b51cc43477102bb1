"""BatchNorm over the whole batch or over groups of it (paper, section 2.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.models import pointwise
from simclr_jax.models.pointwise import Moments, Pointwise


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy, 2015) of the last axis.

    Statistics are float32 for any dtype and biased. `num_groups` above 1 divides the
    batch into as many consecutive parts of one size, each normalised by its own mean
    and variance; the running statistics are then the means of those over the parts.
    Parameters 'scale' and 'bias' [C], statistics 'mean' and 'var' [C], all float32.
    """

    num_groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    use_running_average: bool = False
    use_bias: bool = True
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array | Pointwise) -> jax.Array:
        """Maps [N, ..., C] to the same shape, in `dtype`.

        Args:
          x: the batch; in training also a convolution that is computed here.

        Raises:
          TypeError: in training, N is not divisible by `num_groups`.
        """
        width = (x.kernel if isinstance(x, Pointwise) else x).shape[-1:]
        running = (
            self.variable("batch_stats", "mean", jnp.zeros, width),
            self.variable("batch_stats", "var", jnp.ones, width),
        )
        scale = self.param("scale", self.scale_init, width)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, width)
        if isinstance(x, Pointwise):
            offset = jnp.zeros(width) if bias is None else bias
            y, moments = pointwise.normalize(
                x, scale, offset, self.num_groups, self.epsilon
            )
            self._update(running, moments)
            return y.astype(self.dtype)
        if self.use_running_average:
            parts = x[None]
            mean, var = (variable.value for variable in running)
        else:
            parts = x.reshape(self.num_groups, -1, *x.shape[1:])
            wide = parts.astype(jnp.float32)
            axes = tuple(range(1, wide.ndim - 1))
            mean = jnp.mean(wide, axes, keepdims=True)
            square = jnp.mean(jnp.square(wide), axes, keepdims=True)
            # Rounding can make the difference negative.
            var = jnp.maximum(0.0, square - jnp.square(mean))
            self._update(running, Moments(mean, var))
        y = (parts - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale)
        if bias is not None:
            y += bias
        return y.reshape(x.shape).astype(self.dtype)

    def _update(self, running: tuple[Any, Any], moments: Moments) -> None:
        """Moves the running statistics towards the means of those of the parts."""
        if self.is_initializing():
            return
        for variable, own in zip(running, moments, strict=True):
            now = jnp.mean(own.reshape(self.num_groups, -1), axis=0)
            variable.value = self.momentum * variable.value + (1 - self.momentum) * now
