"""Checksums of arrays, equal however the arrays lie on devices.

Orbax's format finds damage to its own tables and none to the arrays themselves, so each
checkpoint records a sum for each array. It is computed where the array is: nothing is
copied from an accelerator, and the sum does not depend on the sharding.
"""

import functools
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax import host_resources

# 2^32 divided by the golden ratio: neighbouring places get numbers far apart.
_SPREAD = np.uint32(0x9E3779B1)
# A mixing step of MurmurHash3.
_FIRST_SHIFT, _FACTOR, _SECOND_SHIFT = 16, np.uint32(0x85EBCA6B), 13
# Elements that NumPy takes at a time: what it keeps meanwhile stays in a core's cache.
_CHUNK = 1 << 14


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
        with ThreadPoolExecutor(host_resources.num_cpus()) as pool:
            sums = list(pool.map(lambda array: _sum_on_host(np.asarray(array)), arrays))
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
        lambda arrays: jnp.stack([_sum(array) for array in arrays]),
        out_shardings=whole,
    )


def _sum(array: jax.Array) -> jax.Array:
    """The sum of one array [...], wherever its parts are: a uint32 []."""
    place = jnp.zeros(array.shape, jnp.uint32)
    stride = 1
    for axis, size in reversed(list(enumerate(array.shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place = place + along * np.uint32(stride % 2**32)
        stride *= size
    mixed = _words(array) ^ (place * _SPREAD)
    mixed = (mixed ^ (mixed >> _FIRST_SHIFT)) * _FACTOR
    return jnp.sum(mixed ^ (mixed >> _SECOND_SHIFT), dtype=jnp.uint32)


def _sum_on_host(array: np.ndarray) -> int:
    """The same of a host array."""
    words = np.ascontiguousarray(array).reshape(-1)
    spread = np.arange(_CHUNK, dtype=np.uint32) * _SPREAD
    mixed, shifted = np.empty_like(spread), np.empty_like(spread)
    total = 0
    for start in range(0, words.size, _CHUNK):
        chunk = _words(words[start : start + _CHUNK])
        x, y = mixed[: chunk.size], shifted[: chunk.size]
        np.add(spread[: chunk.size], np.uint32(start * int(_SPREAD) % 2**32), out=x)
        np.bitwise_xor(x, chunk, out=x)
        np.right_shift(x, _FIRST_SHIFT, out=y)
        np.bitwise_xor(x, y, out=x)
        np.multiply(x, _FACTOR, out=x)
        np.right_shift(x, _SECOND_SHIFT, out=y)
        np.bitwise_xor(x, y, out=x)
        total += int(x.sum(dtype=np.uint32))
    return total % 2**32


def _words(array: Any) -> Any:
    """The bits of each element, as uint32."""
    if array.dtype == np.bool_:
        return array.astype(np.uint32)
    size = np.dtype(array.dtype).itemsize
    if size > 4:
        raise TypeError(f"{array.dtype}: must have at most 32 bits an element")
    bits = array.view(f"uint{8 * size}")
    return bits if size == 4 else bits.astype(np.uint32)
