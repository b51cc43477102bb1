"""Checksums of arrays, equal however the arrays lie on devices.

Orbax's format finds damage to its own tables and none to the arrays themselves, so each
checkpoint records a sum for each array. It is computed where the array is: nothing is
copied from an accelerator, and the sum does not depend on the sharding.
"""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# 2^32 divided by the golden ratio: neighbouring places get numbers far apart.
_SPREAD = np.uint32(0x9E3779B1)
# The last mixing steps of MurmurHash3: (shift, factor).
_MIXING = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))


def of_tree(tree: Any) -> dict[str, str]:
    """The checksum of each array of a tree.

    The sum, modulo 2^32, of a hash of each element's bits and its place. The hash is
    one-to-one in the bits, so a change of one element always changes the sum; other
    changes go unseen once in 2^32 times.

    Args:
      tree: of arrays of at most 32 bits an element, in any sharding.

    Returns:
      Name -> 8 hex digits; a name such as `params/encoder/stem/conv1/kernel`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    arrays = [array for _, array in leaves]
    if all(map(_is_on_host, arrays)):
        # No program to compile, which would take longer than the sums.
        sums = [int(_sum(np.asarray(array), np)) for array in arrays]
    else:
        sums = np.asarray(_program(_mesh_of(arrays))(arrays)).tolist()
    return {name: f"{value:08x}" for name, value in zip(names, sums, strict=True)}


def _is_on_host(array: Any) -> bool:
    """Whether a host array, or one of CPU devices that this process has as a whole."""
    if not isinstance(array, jax.Array):
        return True
    whole = array.is_fully_addressable or array.is_fully_replicated
    return whole and all(device.platform == "cpu" for device in array.devices())


def _mesh_of(arrays: list[Any]) -> jax.sharding.Mesh | None:
    for array in arrays:
        if isinstance(getattr(array, "sharding", None), NamedSharding):
            return array.sharding.mesh
    return None


def of_text(text: str) -> str:
    """The CRC-32 of a text: 8 hex digits."""
    return f"{zlib.crc32(text.encode()):08x}"


@functools.cache
def _program(mesh: jax.sharding.Mesh | None) -> Any:
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        lambda arrays: jnp.stack([_sum(array, jnp) for array in arrays]),
        out_shardings=whole,
    )


def _sum(array: Any, xp: Any) -> Any:
    """The sum of one array [...]: a uint32 [].

    Args:
      array: of NumPy or of JAX.
      xp: the module of the array, numpy or jax.numpy.
    """
    # NumPy warns where a number by itself overflows, and not for arrays.
    words = xp.atleast_1d(_words(array))
    place = xp.zeros(words.shape, np.uint32)
    stride = 1
    for axis, size in reversed(list(enumerate(words.shape))):
        along = [-1 if other == axis else 1 for other in range(words.ndim)]
        at = xp.arange(size, dtype=np.uint32).reshape(along)
        place = place + at * np.uint32(stride % 2**32)
        stride *= size
    mixed = words ^ (place * _SPREAD)
    for shift, factor in _MIXING:
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return xp.sum(mixed, dtype=np.uint32)


def _words(array: Any) -> Any:
    """The bits of each element, as uint32."""
    if array.dtype == np.bool_:
        return array.astype(np.uint32)
    size = np.dtype(array.dtype).itemsize
    if size > 4:
        raise TypeError(f"{array.dtype}: must have at most 32 bits an element")
    return array.view(f"uint{8 * size}").astype(np.uint32)
