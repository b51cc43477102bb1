"""Room for checkpoints on a local disk, estimated before a training starts."""

import math
import shutil
from typing import Any

import jax
import numpy as np
from etils import epath

from simclr_jax import paths
from simclr_jax.errors import ConfigError

_MIB = 2**20


def require(folder: epath.Path, state: Any, num_saved: int) -> None:
    """Checks that a disk has room for the checkpoints to come.

    A new checkpoint is complete before an old one is removed, so that a run needs two:
    a third one is written where the second was. Stores have no limit to ask for.

    Args:
      folder: of the checkpoints; must be there.
      state: arrays or shapes with `params` and `batch_stats`, of which a checkpoint
        holds a second copy for readers of the weights.
      num_saved: checkpoints that are there already.

    Raises:
      ConfigError: there is less.
    """
    if paths.is_store(folder) or paths.is_mounted_bucket(folder):
        return
    size = _num_bytes(state) + _num_bytes([state.params, state.batch_stats])
    needed = max(2 - num_saved, 1) * size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"folder {folder}: has {free // _MIB} MiB free, and a checkpoint takes up "
            f"to {math.ceil(size / _MIB)}; must have room for "
            f"{'two' if num_saved == 0 else 'one more'}"
        )


def _num_bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )
