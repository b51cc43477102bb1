"""What a CPU's train steps free stays with the process."""

import ctypes
import resource
import subprocess
import sys
import threading
import types

import pytest

from simclr_jax.parallel import host_memory

# As large as the temporaries of a small net's step.
_NUM_BYTES = 256 * 2**20
_PAGE_BYTES = 4096


def page_faults_of_a_later_step() -> int:
    """Faults of getting, filling and freeing a block the third time, in a thread."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    faults = []

    def steps() -> None:
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(_NUM_BYTES)))
            ctypes.memset(block, 1, _NUM_BYTES)
            libc.free(block)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
    return faults[-1]


def in_a_new_process(platforms: str) -> tuple[bool, int]:
    """Whether memory is kept where `platforms` compute, and the faults then."""
    printed = subprocess.run(
        [sys.executable, __file__, platforms],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    kept, faults = printed.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="there is no glibc here"
)
def test_a_step_on_cpus_finds_its_pages_again():
    pages = _NUM_BYTES // _PAGE_BYTES

    kept, faults = in_a_new_process("cpu")

    assert kept
    assert faults < pages // 100


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
    monkeypatch.setattr(host_memory, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setattr(
        host_memory.importlib.metadata, "entry_points", lambda group: plugins
    )
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", lambda name: libtpu)

    assert host_memory._cpus_compute() == expected


if __name__ == "__main__":
    import jax

    jax.config.update("jax_platforms", sys.argv[1])
    print(host_memory.keep_freed_memory(), page_faults_of_a_later_step())
