"""One mesh axis, 'data', over all devices of all hosts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Partition specs: split on the leading axis, and whole on every device.
SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axis 'data' over `devices`, by default all devices.

    Devices are in the order of processes, so that slice i of a batch belongs to process
    i. `jax.make_mesh` would order a TPU slice by its links.
    """
    devices = jax.devices() if devices is None else list(devices)
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over 'data'; the other axes are whole."""
    return NamedSharding(mesh, SPLIT)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, WHOLE)


# Smaller arrays (BatchNorm, biases) stay whole: gathering each costs a message.
_SMALLEST_SHARDED = 2**14


def spread(mesh: Mesh, like: Any) -> Any:
    """Shardings that split large arrays over the devices, each part held once.

    Each array is split along its longest axis that is divisible by the number of
    devices (the last one if several are as long). Small arrays and arrays without such
    an axis stay whole.

    Args:
      mesh: from `create_mesh`.
      like: a tree of arrays or shapes.

    Returns:
      The tree with a NamedSharding for each array.
    """

    def sharding(leaf: Any) -> NamedSharding:
        divisible = [
            (size, axis) for axis, size in enumerate(leaf.shape) if not size % mesh.size
        ]
        if leaf.size < _SMALLEST_SHARDED or not divisible:
            return replicated(mesh)
        _, chosen = max(divisible)
        return NamedSharding(mesh, PartitionSpec(*[None] * chosen, "data"))

    return jax.tree.map(sharding, like)


def shard_batch(
    mesh: Mesh, local: Mapping[str, np.ndarray]
) -> dict[str, jax.Array | Any]:
    """Builds global arrays, split on their leading axis, from this host's slices.

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
    """Global arrays from NumPy arrays that every process holds as a whole.

    Each device receives only its part; `jax.device_put` would send the whole array to
    all devices, to check that the processes hold the same values.
    """

    def one(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )

    return jax.tree.map(one, arrays)


def on_each_device(
    function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """A function that runs on each device with that device's part of its arguments.

    Args:
      function: of arrays; may call collectives over 'data'.
      mesh: from `create_mesh`.
      in_specs: `SPLIT` or `WHOLE` for each argument.
      out_specs: the same for the result.
    """
    # Loops begin with constants, which are the same on all devices, and end with
    # values that are not; the check would refuse them.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def fetch(mesh: Mesh, arrays: Any) -> Any:
    """Whole NumPy copies of global arrays on every process. A collective."""
    if jax.process_count() > 1:
        arrays = jax.jit(lambda x: x, out_shardings=replicated(mesh))(arrays)
    return jax.device_get(arrays)
