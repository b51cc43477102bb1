"""Walks over the rows of a device in blocks, so that temporaries stay small."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

_Carry = TypeVar("_Carry")


class Block(NamedTuple):
    """Consecutive rows."""

    start: jax.Array  # the first row
    is_new: jax.Array  # [n]: no earlier block had this row

    def of(self, rows: jax.Array) -> jax.Array:
        """These rows of an array."""
        return jax.lax.dynamic_slice_in_dim(rows, self.start, len(self.is_new))

    def put(self, rows: jax.Array, new: jax.Array) -> jax.Array:
        """An array with these rows replaced."""
        return jax.lax.dynamic_update_slice_in_dim(rows, new, self.start, axis=0)


def fold(
    function: Callable[[Block, _Carry], _Carry],
    carry: _Carry,
    num_rows: int,
    size: int,
) -> _Carry:
    """Applies a function to one block of rows after the other.

    Blocks have one size, so the last one also has rows of the one before it.

    Args:
      function: (block, carry) -> carry.
      carry: the first.
      num_rows: number of all rows.
      size: number of rows in a block, at most.
    """
    size = min(size, num_rows)

    def step(number: jax.Array, carry: _Carry) -> _Carry:
        start = jnp.minimum(number * size, num_rows - size)
        is_new = start + jnp.arange(size) >= number * size
        return function(Block(start, is_new), carry)

    if size == num_rows:
        return step(jnp.array(0), carry)
    return jax.lax.fori_loop(0, -(-num_rows // size), step, carry)
