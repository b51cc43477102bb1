"""Checksums of arrays, equal however the arrays lie on devices.

Orbax's format finds damage to its own tables and none to the arrays themselves, so each
checkpoint records a sum for each array. It is computed on the devices that hold the
array: nothing is copied to a host, and the sum does not depend on the sharding.
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
    meshes = {
        array.sharding.mesh
        for array in arrays
        if isinstance(array, jax.Array) and isinstance(array.sharding, NamedSharding)
    }
    mesh = meshes.pop() if len(meshes) == 1 else None
    sums = np.asarray(_program(mesh)(arrays)) if arrays else []
    return {name: f"{int(value):08x}" for name, value in zip(names, sums, strict=True)}


def of_text(text: str) -> str:
    """The CRC-32 of a text: 8 hex digits."""
    return f"{zlib.crc32(text.encode()):08x}"


@functools.cache
def _program(mesh: jax.sharding.Mesh | None) -> Any:
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        lambda arrays: jnp.stack([_sum(array) for array in arrays]), out_shardings=whole
    )


def _sum(array: jax.Array) -> jax.Array:
    """The sum of one array [...]: a uint32 []."""
    words = _words(array)
    place = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        at = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += at * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = words ^ (place * _SPREAD)
    for shift, factor in _MIXING:
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The bits of each element, as uint32."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = jnp.dtype(array.dtype).itemsize * 8
    if bits > 32:
        raise TypeError(f"{array.dtype}: must have at most 32 bits an element")
    unsigned = jnp.dtype(f"uint{bits}")
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
