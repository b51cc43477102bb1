"""Threads and memory of the input pipeline."""

import dataclasses

import pytest

from simclr_jax import host_resources
from simclr_jax.data.buffers import Buffers
from simclr_jax.errors import DataError

MIB = 2**20


@pytest.mark.parametrize("memory_mb", [1200, 1500, 1700, 2500, 100_000])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("batch_mb", [1, 100, 150])
def test_the_budget_is_kept_and_used(memory_mb, threads, batch_mb):
    found = Buffers.choose(
        batch_bytes=batch_mb * MIB, memory_mb=memory_mb, threads=threads
    )
    assert found.memory_bytes <= memory_mb * MIB
    assert 1 <= found.prefetch <= 4
    # One more batch ahead would be too much, for memory or for any use.
    one_more = found.memory_bytes + batch_mb * MIB
    assert found.prefetch == 4 or one_more > memory_mb * MIB


def test_what_takes_memory():
    def needed(**changes):
        settings = {"batch_bytes": MIB, "threads": 2, "parallel_reads": 2} | changes
        return Buffers.choose(**settings).memory_bytes

    # Batches: those ahead, the one that is filled, and two on their way to the device.
    assert needed(batch_bytes=11 * MIB) - needed() == 10 * (4 + 3) * MIB
    # A thread holds a decoded photograph of several megapixels.
    assert needed(threads=3) - needed() >= 50 * MIB
    assert needed(parallel_reads=3) > needed()
    # Reads of 16 images, or of a block where that is more.
    one = needed(parallel_reads=3) - needed()
    assert needed(block_size=16) == needed(block_size=1) == needed()
    assert needed(block_size=64) - needed() == 2 * 3 * one


@pytest.mark.parametrize("threads", [1, 3])
def test_too_small_a_budget_names_the_one_that_does(threads):
    settings = {"batch_bytes": 200 * MIB + 1, "threads": threads, "parallel_reads": 7}
    with pytest.raises(DataError) as caught:
        Buffers.choose(memory_mb=100, **settings)
    message = str(caught.value)
    assert message.startswith("config.data.memory_mb=100: must be at least ")
    assert f"{threads} threads and 7 parallel reads" in message
    assert "\n" not in message
    needed = int(message.split("at least ")[1].split(",")[0])
    assert Buffers.choose(memory_mb=needed, **settings).prefetch == 1
    with pytest.raises(DataError, match=f"at least {needed}"):
        Buffers.choose(memory_mb=needed - 1, **settings)


@pytest.fixture
def have(monkeypatch):
    """Sets what this process may use."""

    def set_share(**changes):
        mine = dataclasses.replace(host_resources.mine(), **changes)
        monkeypatch.setattr(host_resources, "mine", lambda: mine)

    return set_share


def test_threads_and_reads_follow_the_cores(have):
    have(cpus=3)
    found = Buffers.choose(batch_bytes=MIB, memory_mb=2000)
    assert found.threads == found.parallel_reads == 3
    assert Buffers.choose(batch_bytes=MIB, threads=3).parallel_reads == 3
    found = Buffers.choose(batch_bytes=MIB, threads=3, parallel_reads=20)
    assert (found.threads, found.parallel_reads) == (3, 20)
    # A read that waits must not take the place of a thread that computes.
    assert found.pool_size == 23


def test_without_a_budget_it_is_a_quarter_of_what_there_is(have):
    have(memory_bytes=16_000 * MIB)
    settings = {"batch_bytes": 500 * MIB, "threads": 1, "parallel_reads": 1}
    assert Buffers.choose(**settings) == Buffers.choose(memory_mb=4000, **settings)
    assert Buffers.choose(**settings) != Buffers.choose(memory_mb=3000, **settings)


def test_too_little_memory_names_where_the_number_comes_from(have):
    have(memory_bytes=400 * MIB, memory_source="the 800 MiB of FILE for 2 processes")
    with pytest.raises(DataError) as caught:
        Buffers.choose(batch_bytes=200 * MIB, threads=1)
    assert str(caught.value).startswith(
        "config.data.memory_mb=100 (by default a quarter of the 800 MiB of FILE for 2 "
        "processes): must be at least "
    )


def test_no_more_threads_start_than_half_of_the_budget_holds(have):
    have(cpus=200)
    found = Buffers.choose(batch_bytes=MIB, memory_mb=2000)
    assert 4 <= found.threads <= 20
    assert found.memory_bytes <= 2000 * MIB
    assert Buffers.choose(batch_bytes=MIB, memory_mb=10**6).threads == 200
