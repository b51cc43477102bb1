"""Roles of parameters, which decide weight decay and layer adaptation.

`optax.lars` by default decays and adapts every leaf, BatchNorm scales and biases
included, which costs several points of accuracy. Here only kernels of the encoder and
the head are decayed and adapted (paper appendix B.6; the reference's exclusion list).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax

_NORM_LEAVES = ("scale", "gamma")
_BIAS_LEAVES = ("bias", "beta")
# Names of the supervised head, here and in the reference.
_PROBE_PARTS = ("probe", "head_supervised", "linear_head")


def parameter_role(path: Sequence[Any]) -> str:
    """The role of a leaf, from its key path in the parameter tree.

    Args:
      path: keys as from `jax.tree_util.tree_map_with_path`.

    Returns:
      'probe' for the linear probe's leaves, 'norm' for BatchNorm scales, 'bias' for
      every offset (including BatchNorm's), 'kernel' for all other leaves.
    """
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    if any(part in _PROBE_PARTS for part in names):
        return "probe"
    if names[-1] in _NORM_LEAVES:
        return "norm"
    return "bias" if names[-1] in _BIAS_LEAVES else "kernel"


def kernels_only(params: Any) -> Any:
    """A mask, True at kernels of encoder and head, for optax's `mask` arguments."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: parameter_role(path) == "kernel", params
    )


def role_table(params: Any, *, adapts: bool) -> str:
    """A printable table: parameters by part and role, and how each is treated.

    Args:
      params: the parameter tree, of arrays or shapes.
      adapts: whether the optimiser scales updates by a trust ratio (LARS).
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        part = jax.tree_util.keystr(path[:1], simple=True)
        entry = counts.setdefault((part, parameter_role(path)), [0, 0])
        entry[0] += 1
        entry[1] += math.prod(leaf.shape)
    lines = [
        f"{'part':<10}{'role':<10}{'leaves':>8}{'parameters':>14}  "
        f"{'weight decay':<14}{'layer adaptation'}"
    ]
    for (part, role), (leaves, size) in counts.items():
        decayed = "yes" if role == "kernel" else "no"
        if role == "probe":
            decayed = "in its loss"
        adapted = "yes" if adapts and role == "kernel" else "no"
        lines.append(
            f"{part:<10}{role:<10}{leaves:>8}{size:>14,}  {decayed:<14}{adapted}"
        )
    return "\n".join(lines)
