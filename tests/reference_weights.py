"""Google's variable names, and the weights of the recorded networks.

A variable's values come from hashes of its name and of the positions in it, so that
recordings need not hold any weights. Names are those of `tests/golden`.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

Tree = dict[str, Any]
# Our leaves and parts by Google's names.
_NAMES = {
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
    "head": "proj_head",
    "probe": "linear_head",
}


def google_name(path: Sequence[str]) -> str:
    """Google's name of the variable at a path such as ('encoder', 'stem', ...)."""
    part, *names, leaf = path
    if part == "probe":
        return f"linear_head/{leaf}"
    prefix = [] if part == "encoder" else [_NAMES[part]]
    return "/".join([*prefix, *names, _NAMES.get(leaf, leaf)])


def by_google_name(tree: Tree) -> dict[str, Any]:
    """The leaves of {'encoder': ..., 'head': ..., 'probe': ...} by Google's names."""
    flat = flax.traverse_util.flatten_dict(tree)
    return {google_name(path): leaf for path, leaf in flat.items()}


def hashed(name: str, shape: Sequence[int], salt: int = 0) -> np.ndarray:
    """Numbers in (-1, 1) from hashes of a name and of positions; float64."""
    t = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9)
    t += np.uint32((zlib.crc32(name.encode()) + salt) % 2**32)
    t ^= t >> 16
    t *= np.uint32(0x85EBCA6B)
    t ^= t >> 13
    t *= np.uint32(0xC2B2AE35)
    t ^= t >> 16
    return (2 * ((t + 0.5) / 2**32) - 1).reshape(shape)


def formula(name: str, shape: Sequence[int]) -> np.ndarray:
    """The value of a variable in the forward passes; float64."""
    spread = math.sqrt(3 * 2 / math.prod(shape[:-1]))
    centre, factor = {
        "kernel": (0, spread),
        "bias": (0, 0.1),
        "gamma": (0.7, 0.3),
        "beta": (0, 0.1),
        "moving_mean": (0, 0.1),
        "moving_variance": (1, 0.5),
    }[name.rpartition("/")[2]]
    return centre + factor * hashed(name, shape)


def fill(
    tree: Tree, value: Callable[[str, Sequence[int]], np.ndarray] = formula
) -> Tree:
    """Gives every leaf of a tree a value.

    Args:
      tree: {'encoder': ..., 'head': ..., 'probe': ...} or some of these; shapes do.
      value: Google's name, shape -> values.

    Returns:
      The same tree of float32 arrays.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: value(
            google_name([key.key for key in path]), leaf.shape
        ).astype(np.float32),
        tree,
    )
