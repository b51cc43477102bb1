"""BatchNorm over the whole batch or over groups of it (paper, section 2.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


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
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, ..., C] to the same shape, in `dtype`.

        Raises:
          ValueError: N is not divisible by `num_groups`.
        """
        width = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        running_var = self.variable("batch_stats", "var", jnp.ones, width)
        scale = self.param("scale", self.scale_init, width)
        if self.use_running_average:
            parts = x[None]
            mean, var = running_mean.value, running_var.value
        else:
            parts = x.reshape(self.num_groups, -1, *x.shape[1:])
            wide = parts.astype(jnp.float32)
            axes = tuple(range(1, wide.ndim - 1))
            mean = jnp.mean(wide, axes, keepdims=True)
            square = jnp.mean(jnp.square(wide), axes, keepdims=True)
            # Rounding can make the difference negative.
            var = jnp.maximum(0.0, square - jnp.square(mean))
            if not self.is_initializing():
                for running, own in ((running_mean, mean), (running_var, var)):
                    now = jnp.mean(own.reshape(self.num_groups, *width), axis=0)
                    past = self.momentum * running.value
                    running.value = past + (1 - self.momentum) * now
        y = (parts - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, width)
        return y.reshape(x.shape).astype(self.dtype)
