"""One mesh axis, 'data', over all devices of all hosts."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def create_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axis 'data' over `devices`, by default all there are."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over 'data'; the others whole."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


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
