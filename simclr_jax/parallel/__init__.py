"""Process start-up and agreement, the device mesh and shardings."""

from simclr_jax.parallel import processes
from simclr_jax.parallel.mesh import (
    SPLIT,
    WHOLE,
    batch_sharding,
    create_mesh,
    fetch,
    on_each_device,
    put,
    replicated,
    shard_batch,
    spread,
)

__all__ = [
    "SPLIT",
    "WHOLE",
    "batch_sharding",
    "create_mesh",
    "fetch",
    "on_each_device",
    "processes",
    "put",
    "replicated",
    "shard_batch",
    "spread",
]
