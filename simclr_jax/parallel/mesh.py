"""One mesh axis, 'data', over all devices of all hosts."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axis 'data' over `devices`, by default all there are.

    In the order of processes, unlike `jax.make_mesh`, which orders a TPU slice by its
    links: slice i of a batch is then that of process i.
    """
    devices = jax.devices() if devices is None else list(devices)
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over 'data'; the others whole."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


# Smaller arrays (BatchNorm, biases) stay whole: gathering them costs a message each.
_SMALLEST_SHARDED = 2**14


def spread(mesh: Mesh, like: Any) -> Any:
    """Shardings that split large arrays over the devices, to hold each part once.

    Each array is split along its longest axis that the devices divide, the last one
    among equals; small ones, and those without such an axis, stay whole.

    Args:
      mesh: from `create_mesh`.
      like: a tree of arrays or shapes.

    Returns:
      The tree with a NamedSharding for each array.
    """

    def sharding(leaf: Any) -> NamedSharding:
        fitting = [
            (size, axis) for axis, size in enumerate(leaf.shape) if not size % mesh.size
        ]
        if leaf.size < _SMALLEST_SHARDED or not fitting:
            return replicated(mesh)
        _, chosen = max(fitting)
        return NamedSharding(mesh, PartitionSpec(*[None] * chosen, "data"))

    return jax.tree.map(sharding, like)


def shard_batch(
    mesh: Mesh, local: Mapping[str, np.ndarray]
) -> dict[str, jax.Array | Any]:
    """Assembles global arrays, split on their leading axis, from this host's slices.

    Args:
      mesh: from `create_mesh`.
      local: arrays [B / number of hosts, ...], this host's contiguous slice.

    Returns:
      The same keys with global arrays [B, ...].
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in local.items()
    }


def put(sharding: NamedSharding, arrays: Any) -> Any:
    """Global arrays from NumPy ones that every process has as a whole.

    Each device gets its own part; `jax.device_put` would send all of it to all devices,
    to compare what the processes have.
    """

    def one(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )

    return jax.tree.map(one, arrays)


def fetch(mesh: Mesh, arrays: Any) -> Any:
    """NumPy copies of global arrays, whole, on every process; all have to call it."""
    if jax.process_count() > 1:
        arrays = jax.jit(lambda x: x, out_shardings=replicated(mesh))(arrays)
    return jax.device_get(arrays)
