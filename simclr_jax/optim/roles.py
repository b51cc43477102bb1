"""Roles of parameters, which decide weight decay and layer adaptation.

`optax.lars` by default decays and adapts every leaf, BatchNorm scales and biases
included, which costs several points of accuracy. Here only kernels of the encoder and
the head are adapted and, unless all parameters are asked for, decayed (paper appendix
B.6; the reference's exclusion list).
"""

import math
from collections.abc import Callable, Sequence
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


def _all_but_probe(params: Any) -> Any:
    """A mask, True at all parameters of encoder and head; the probe decays itself."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: parameter_role(path) != "probe", params
    )


# name -> mask of the parameters that weight decay takes.
_DECAY_MASKS: dict[str, Callable[[Any], Any]] = {
    "kernels": kernels_only,
    "all": _all_but_probe,
}
DECAYED = tuple(_DECAY_MASKS)


def decay_mask(decayed: str) -> Callable[[Any], Any]:
    """The mask of weight decay, for optax's `mask` arguments.

    Args:
      decayed: 'kernels' of encoder and head, or 'all' parameters of the two.

    Raises:
      ValueError: another name.
    """
    if decayed not in _DECAY_MASKS:
        raise ValueError(f"decayed={decayed!r}: must be one of {', '.join(DECAYED)}")
    return _DECAY_MASKS[decayed]


def role_table(params: Any, *, adapts: bool, decayed: str = "kernels") -> str:
    """A printable table: parameters by part and role, and how each is treated.

    Args:
      params: the parameter tree, of arrays or shapes.
      adapts: whether the optimiser scales updates by a trust ratio (LARS).
      decayed: as in `decay_mask`.
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
        decays = "yes" if role == "kernel" or decayed == "all" else "no"
        if role == "probe":
            decays = "in its loss"
        adapted = "yes" if adapts and role == "kernel" else "no"
        lines.append(
            f"{part:<10}{role:<10}{leaves:>8}{size:>14,}  {decays:<14}{adapted}"
        )
    return "\n".join(lines)
