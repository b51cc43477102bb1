"""FLOPs of a step by its mathematics, independent of the compiled program."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax import models


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
    return _flops(jaxpr.jaxpr)


def step_flops(per_view: float, *, num_views: int, output_dim: int) -> float:
    """Of a training step: a backward pass costs twice the forward one.

    Args:
      per_view: from `forward_flops`.
      num_views: in the global batch.
      output_dim: K; every view is compared with every other.
    """
    return 3 * (num_views * per_view + 2 * num_views**2 * output_dim)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = equation.outvars[0].aval.size
            output_features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * outputs * math.prod(kernel) / output_features
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            outputs = equation.outvars[0].aval.size
            total += 2 * outputs * math.prod(lhs[axis] for axis in contracted)
        elif "branches" in parameters:
            flops = [_flops(branch.jaxpr) for branch in parameters["branches"]]
            # One for each platform, TPUs' the last; or one of them by chance.
            total += flops[-1] if parameters.get("branches_platforms") else max(flops)
        else:
            times = parameters.get("length", 1)
            total += times * sum(map(_flops, _inner(parameters)))
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    """Programs that an operation runs once."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in parameters:
            program = parameters[name]
            yield getattr(program, "jaxpr", program)
            return
