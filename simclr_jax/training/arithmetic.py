"""The arithmetic of a traced function, counted by its mathematics."""

import math
from collections.abc import Iterator
from typing import Any


def flops(jaxpr: Any) -> float:
    """Of convolutions and matrix products: two for each product of their numbers.

    Those with padding are included. The body of a `while` loop, whose length is not
    known, is not; inside of `shard_map` it is the work of one device.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr`.
    """
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
            branches = [flops(branch.jaxpr) for branch in parameters["branches"]]
            # One for each platform, TPUs' the last; or one of them by chance.
            by_platform = parameters.get("branches_platforms")
            total += branches[-1] if by_platform else max(branches)
        else:
            times = parameters.get("length", 1)
            total += times * sum(map(flops, _inner(parameters)))
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    """Programs that an operation runs once."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in parameters:
            program = parameters[name]
            yield getattr(program, "jaxpr", program)
            return
