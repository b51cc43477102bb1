"""Similarities of a global batch, computed one block of columns at a time.

The matrix of all pairs of B*V views takes 1.1 TB at 262,144 images. Here every device
keeps its own rows, gathers the embeddings of all devices as columns, and streams over
blocks of them: nothing larger than (rows of a device) x (block) exists at any time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logits of one block on one device: small enough for a TPU's on-chip memory and a CPU's
# caches, large enough to keep their arithmetic units busy.
_BLOCK_ENTRIES = 2**22
_SMALLEST_BLOCK, _LARGEST_BLOCK = 256, 2048
# With fewer logits than this on a device, one matrix is as fast, and small.
_WORTH_IT_ENTRIES = 2**22

# carry, index of the block's first column, block of every column array -> carry
Fold = Callable[[Any, jax.Array, Any], Any]


@dataclasses.dataclass(frozen=True)
class Streaming:
    """How to stream over the similarities; hashable, so it can be a static argument.

    Attributes:
      mesh: rows are split over its axis 'data'; None for one device.
      size: columns in a block; None chooses it from the number of rows.
    """

    mesh: Mesh | None = None
    size: int | None = None

    def size_for(self, num_rows: int) -> int:
        """Columns in a block, for this number of rows on a device."""
        if self.size is not None:
            return self.size
        columns = _BLOCK_ENTRIES // max(num_rows, 1)
        return min(max(columns, _SMALLEST_BLOCK), _LARGEST_BLOCK)


def choose_streaming(num_views: int, mesh: Mesh | None) -> Streaming | None:
    """Streaming where the matrix of all pairs would be large, else None.

    Args:
      num_views: B*V of the global batch.
      mesh: the devices; None for one device.
    """
    devices = 1 if mesh is None else mesh.size
    worth_it = num_views * num_views > _WORTH_IT_ENTRIES * devices
    return Streaming(mesh) if worth_it else None


def fold_columns(fold: Fold, carry: Any, columns: Any, *, block_size: int) -> Any:
    """Folds over blocks of the leading axis of arrays.

    Args:
      fold: takes (carry, index of the first column, the block of each array).
      carry: the initial value.
      columns: arrays [N, ...]. The last block is padded with zeros: `fold` must
        ignore indices >= N.
      block_size: columns in a block.

    Returns:
      The final carry.
    """
    (num_columns,) = {len(leaf) for leaf in jax.tree.leaves(columns)}
    block_size = min(block_size, num_columns)
    num_blocks = -(-num_columns // block_size)

    def blocked(array: jax.Array) -> jax.Array:
        missing = num_blocks * block_size - num_columns
        array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(num_blocks, block_size, *array.shape[1:])

    def step(carry: Any, block: tuple[jax.Array, Any]) -> tuple[Any, None]:
        return fold(carry, *block), None

    starts = jnp.arange(num_blocks) * block_size
    return jax.lax.scan(step, carry, (starts, jax.tree.map(blocked, columns)))[0]


def on_own_rows(
    function: Callable[[jax.Array, Any, Any], Any],
    rows: Any,
    columns: Any,
    *,
    mesh: Mesh | None,
) -> Any:
    """Runs a function on the rows of each device and all columns.

    Args:
      function: takes (index of the first row, rows of this device, all columns) and
        returns arrays with the leading axis of the rows.
      rows: arrays [N, ...], split over the mesh.
      columns: arrays that every device needs as a whole; gathered if they are split.
      mesh: the devices; None for one device.

    Returns:
      The results of `function` for all rows, split as the rows are.
    """
    if mesh is None or mesh.size == 1:
        return function(jnp.zeros((), jnp.int32), rows, columns)

    def local(rows: Any, columns: Any) -> Any:
        num_rows = len(jax.tree.leaves(rows)[0])
        return function(jax.lax.axis_index("data") * num_rows, rows, columns)

    split, whole = PartitionSpec("data"), PartitionSpec()
    return jax.shard_map(
        local, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False
    )(rows, columns)


def gather(arrays: Any, mesh: Mesh | None) -> Any:
    """The arrays, replicated on every device."""
    if mesh is None or mesh.size == 1:
        return arrays
    return jax.lax.with_sharding_constraint(
        arrays, NamedSharding(mesh, PartitionSpec())
    )
