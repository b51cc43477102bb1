"""Whether the features of a dataset fit into the memory of the devices."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax import host_resources
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation.context import Context
from simclr_jax.evaluation.features import Encode

# Protocols that hold features of all training images; the others hold those of a share
# of them, or of the test images alone.
_OF_ALL_IMAGES = {"knn", "linear", "layers"}


def check(context: Context, protocols: Sequence[str]) -> None:
    """Checks that the features that protocols hold at a time fit.

    Args:
      context: of a representation.
      protocols: their names.

    Raises:
      ConfigError: they do not fit; the message has the sizes.
    """
    size = context.preprocessing.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    h = jax.eval_shape(context.encode, images)
    layers: list[Encode | None] = [context.layer]
    if "layers" in protocols:
        layers += context.layers.values()
    # A layer is held beside h, from which it is computed.
    others = [
        jax.eval_shape(layer, h).shape[1] for layer in layers if layer is not None
    ]
    width = h.shape[1] + max(others, default=0)
    needs_all = not _OF_ALL_IMAGES.isdisjoint(protocols)
    dataset, mesh = context.dataset, context.mesh
    train = dataset.train.num_examples if needs_all else 0
    test = dataset.test.num_examples
    needed = 4 * width * (train + test) / mesh.size
    free = _free_bytes(mesh)
    if free is not None and needed > free:
        raise ConfigError(
            f"config.data.dataset={dataset.name}: {train:,} training and {test:,} test "
            f"images x {width} float32 features ({context.name}) take "
            f"{needed / 1e9:.1f} GB on each of {mesh.size} devices, which have "
            f"{free / 1e9:.1f} GB free; use more devices, or linear_1pct, linear_10pct "
            "or linear_sgd, which hold fewer"
        )


def _free_bytes(mesh: Mesh) -> int | None:
    """Free memory of each device, as far as known; on CPUs a part of the host's."""
    devices = mesh.local_devices
    statistics = devices[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics["bytes_in_use"])
    if devices[0].platform != "cpu":
        return None
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    (available,) = (line.split()[1] for line in lines if line.startswith("MemAvail"))
    return min(int(available) * 1024, host_resources.mine().memory_bytes) // len(
        devices
    )
