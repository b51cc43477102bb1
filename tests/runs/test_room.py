"""Room for checkpoints: what is needed, and who is told."""

import shutil
import types

import jax
import numpy as np
import pytest
from etils import epath

from simclr_jax import paths
from simclr_jax.errors import ConfigError
from simclr_jax.runs import room

MIB = 2**20
# 4 MiB of parameters, 1 of statistics and 4 of momentum: with the copy for readers 14.
STATE = types.SimpleNamespace(
    params=jax.ShapeDtypeStruct((2**20,), np.float32),
    batch_stats=jax.ShapeDtypeStruct((2**19,), jax.numpy.bfloat16),
    opt_state=jax.ShapeDtypeStruct((2, 2**19), np.float32),
)
jax.tree_util.register_pytree_node(
    types.SimpleNamespace,
    lambda state: (list(vars(state).values()), tuple(vars(state))),
    lambda names, values: types.SimpleNamespace(
        **dict(zip(names, values, strict=True))
    ),
)


@pytest.mark.parametrize(
    ("num_saved", "needed_mib", "word"),
    [(0, 28, "two"), (1, 14, "one"), (3, 14, "one")],
)
def test_a_disk_with_less_is_refused(
    tmp_path, monkeypatch, num_saved, needed_mib, word
):
    def has(free):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    has(needed_mib * MIB)
    room.require(epath.Path(tmp_path), STATE, num_saved)
    has(needed_mib * MIB - 1)
    with pytest.raises(ConfigError, match=f"takes up to 14; must have room for {word}"):
        room.require(epath.Path(tmp_path), STATE, num_saved)


def test_a_mounted_bucket_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "is_mounted_bucket", lambda _: True)
    monkeypatch.setattr(shutil, "disk_usage", None)
    room.require(epath.Path(tmp_path), STATE, 0)
