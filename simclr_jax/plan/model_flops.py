"""FLOPs of a step by its mathematics, independent of the compiled program."""

import jax
import jax.numpy as jnp

from simclr_jax import models
from simclr_jax.training import arithmetic


def forward_flops(model: models.SimCLR, *, image_size: int) -> float:
    """Of one view through encoder and head: two for each product of the layers.

    The usual count: products with padding are included; BatchNorm, activations and the
    like are not.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0), images)
    jaxpr = jax.make_jaxpr(lambda p, s, x: model.apply(p, s, x, train=True))(
        params, batch_stats, images
    )
    return arithmetic.flops(jaxpr.jaxpr)


def step_flops(per_view: float, *, num_views: int, output_dim: int) -> float:
    """Of a training step: a backward pass costs twice the forward one.

    Args:
      per_view: from `forward_flops`.
      num_views: in the global batch.
      output_dim: K; every view is compared with every other.
    """
    return 3 * (num_views * per_view + 2 * num_views**2 * output_dim)
