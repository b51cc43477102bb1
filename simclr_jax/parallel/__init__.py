"""Device mesh and shardings."""

from simclr_jax.parallel.mesh import (
    batch_sharding,
    create_mesh,
    replicated,
    shard_batch,
)

__all__ = ["batch_sharding", "create_mesh", "replicated", "shard_batch"]
