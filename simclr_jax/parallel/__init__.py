"""Process start-up and agreement, the device mesh and shardings."""

from simclr_jax.parallel import processes
from simclr_jax.parallel.mesh import (
    batch_sharding,
    create_mesh,
    fetch,
    put,
    replicated,
    shard_batch,
    spread,
)

__all__ = [
    "batch_sharding",
    "create_mesh",
    "fetch",
    "processes",
    "put",
    "replicated",
    "shard_batch",
    "spread",
]
