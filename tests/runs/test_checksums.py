"""Checksums of arrays: independent of the sharding, and of NumPy by the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax import parallel
from simclr_jax.runs import checksums

GENERATOR = np.random.default_rng(0)
TREE = {
    "params": {
        "kernel": GENERATOR.normal(size=(3, 5, 16)).astype(np.float32),
        "bias": GENERATOR.normal(size=16).astype(jnp.bfloat16),
    },
    "step": np.int32(7),
    # More than two chunks of the sums on hosts.
    "probe": GENERATOR.normal(size=(3, 11_000)).astype(np.float32),
    "open": np.array([True, False]),
}


def by_definition(array: np.ndarray) -> str:
    """The sum with Python's own integers."""
    total = 0
    array = np.asarray(array)
    bits = array.view(f"u{array.dtype.itemsize}")
    for place, word in enumerate(bits.ravel().tolist()):
        mixed = word ^ (place * 0x9E3779B1) % 2**32
        for shift, factor in ((16, 0x85EBCA6B), (13, 1)):
            mixed = (mixed ^ mixed >> shift) * factor % 2**32
        total += mixed
    return f"{total % 2**32:08x}"


@pytest.mark.parametrize("on_host", [True, False])
def test_they_are_those_of_the_definition(on_host, monkeypatch):
    monkeypatch.setattr(checksums, "_is_on_host", lambda _: on_host)
    assert checksums.of_tree(TREE) == {
        "open": by_definition(TREE["open"]),
        "params/bias": by_definition(TREE["params"]["bias"]),
        "params/kernel": by_definition(TREE["params"]["kernel"]),
        "probe": by_definition(TREE["probe"]),
        "step": by_definition(TREE["step"]),
    }


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(None, None, "data")])
def test_they_do_not_depend_on_the_sharding(spec, monkeypatch):
    monkeypatch.setattr(checksums, "_is_on_host", lambda _: False)
    mesh = parallel.create_mesh()
    array = TREE["params"]["kernel"]
    placed = jax.device_put(array, NamedSharding(mesh, spec))
    assert checksums.of_tree([placed]) == checksums.of_tree([array])


def test_every_flipped_bit_of_one_element_changes_them():
    array = TREE["params"]["kernel"].ravel()[:16]
    sums = set()
    for place in range(16):
        for bit in range(32):
            other = array.copy()
            other.view(np.uint32)[place] ^= np.uint32(1) << np.uint32(bit)
            sums.add(checksums.of_tree([other])["0"])
    assert len(sums) == 16 * 32
    assert checksums.of_tree([array])["0"] not in sums


def test_elements_that_changed_places_change_them():
    array = TREE["params"]["kernel"]
    assert checksums.of_tree([array]) != checksums.of_tree([array[:, ::-1]])
    assert checksums.of_tree([array]) != checksums.of_tree([-array])
