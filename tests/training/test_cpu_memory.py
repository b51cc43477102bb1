"""Memory freed by train steps on CPUs stays with the process."""

import ctypes
import itertools
import resource
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from simclr_jax.training import cpu_memory

_NUM_ROWS, _NUM_COLUMNS = 64, 2**19
# What a step allocates and frees.
_NUM_BYTES = 4 * _NUM_ROWS * _NUM_COLUMNS
_PAGE_BYTES = 4096


@jax.jit
def step(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(jax.lax.optimization_barrier(a @ b))


def page_faults_of_later_steps() -> int:
    a, b = jnp.ones((_NUM_ROWS, 64)), jnp.ones((64, _NUM_COLUMNS))

    def faults_after(num_steps: int) -> int:
        for _ in range(num_steps):
            step(a, b).block_until_ready()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    counts = [faults_after(2)]
    counts += [faults_after(8) for _ in range(3)]
    # Whatever else the machine does, such as taking memory back, can only add some.
    return min(after - before for before, after in itertools.pairwise(counts))


def in_a_new_process(platforms: str) -> tuple[bool, int]:
    """Whether memory is kept where `platforms` compute, and a CPU's faults then."""
    printed = subprocess.run(
        [sys.executable, __file__, platforms],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    kept, faults = printed.split()
    return kept == "True", int(faults)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc here"
)
def test_steps_on_cpus_find_their_pages_again():
    kept, faults = in_a_new_process("cpu")

    assert kept
    assert faults < _NUM_BYTES // _PAGE_BYTES // 100


@pytest.mark.slow
def test_hosts_of_accelerators_are_left_alone():
    kept, _ = in_a_new_process("tpu,cpu")

    assert not kept


@pytest.mark.parametrize(
    ("plugins", "libtpu", "expected"),
    [([], None, True), (["cuda"], None, False), ([], "there", False)],
)
def test_without_being_told_plugins_tell_accelerators(
    monkeypatch, plugins, libtpu, expected
):
    config = types.SimpleNamespace(jax_platforms=None)
    monkeypatch.setattr(cpu_memory, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setattr(
        cpu_memory.importlib.metadata, "entry_points", lambda group: plugins
    )
    monkeypatch.setattr(cpu_memory.importlib.util, "find_spec", lambda name: libtpu)

    assert cpu_memory._cpus_compute() == expected


if __name__ == "__main__":
    jax.config.update("jax_platforms", sys.argv[1])
    is_kept = cpu_memory.keep_freed_memory()
    jax.config.update("jax_platforms", "cpu")
    print(is_kept, page_faults_of_later_steps())
