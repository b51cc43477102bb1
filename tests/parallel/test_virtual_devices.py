"""Several CPU devices of one process are set up so that they cannot deadlock."""

import os

import pytest

from simclr_jax.parallel import processes

IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


@pytest.fixture
def num_devices(monkeypatch):
    """A function that sets the number of devices, and nothing else."""

    def choose(number, *flags):
        forced = f"--xla_force_host_platform_device_count={number}"
        monkeypatch.setenv("XLA_FLAGS", " ".join([forced, *flags]))
        monkeypatch.setenv("PJRT_NPROC", "")  # restored at the end
        monkeypatch.delenv("PJRT_NPROC")

    return choose


def test_collectives_run_in_order_in_enough_threads(num_devices):
    num_devices(4)
    processes.serve_virtual_devices()
    assert IN_ORDER in os.environ["XLA_FLAGS"].split()
    assert os.environ["PJRT_NPROC"] == "8"


def test_several_processes_keep_the_size_of_the_pool(num_devices):
    num_devices(4)
    processes.serve_virtual_devices(alone=False)
    assert IN_ORDER in os.environ["XLA_FLAGS"].split()
    assert "PJRT_NPROC" not in os.environ


def test_one_device_changes_nothing(num_devices):
    num_devices(1)
    before = dict(os.environ)
    processes.serve_virtual_devices()
    assert dict(os.environ) == before


def test_one_device_of_each_of_several_processes_is_set_up_too(num_devices):
    num_devices(1)
    processes.serve_virtual_devices(alone=False)
    assert IN_ORDER in os.environ["XLA_FLAGS"].split()
    assert "PJRT_NPROC" not in os.environ


def test_the_users_choice_stays(num_devices, monkeypatch):
    chosen = "--xla_cpu_enable_concurrency_optimized_scheduler=true"
    num_devices(4, chosen)
    monkeypatch.setenv("PJRT_NPROC", "5")
    processes.serve_virtual_devices()
    assert IN_ORDER not in os.environ["XLA_FLAGS"]
    assert os.environ["PJRT_NPROC"] == "5"
