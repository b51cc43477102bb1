"""Processes find each other, and say who is missing where they do not."""

import concurrent.futures
import json
import re
import socket
import threading
import time

import pytest
from jobs import free_port

from simclr_jax import host_resources
from simclr_jax.errors import ConfigError, StartFailed
from simclr_jax.parallel import processes, roll_call


def hold(numbers, *, num_processes, timeout_secs=20.0, port=None, sizes=None):
    """The verdict of each process in `numbers`: '' or what it was told."""
    port = port or free_port()

    def one(number: int) -> str:
        size = (sizes or {}).get(number, num_processes)
        job = roll_call.Membership(f"localhost:{port}", size, number)
        try:
            roll_call.wait_for_all(job, timeout_secs=timeout_secs)
        except StartFailed as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(one, numbers))


def test_all_go_on_once_all_are_there():
    assert hold([3, 1, 0, 2], num_processes=4) == [""] * 4


def test_everyone_learns_what_the_processes_of_its_host_may_use():
    port = free_port()

    def one(number):
        job = roll_call.Membership(f"localhost:{port}", 3, number)
        return roll_call.wait_for_all(job, timeout_secs=20.0)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(one, range(3)))
    assert found == [[host_resources.read_claim()] * 3] * 3


def test_processes_of_other_hosts_do_not_count():
    hosts = {0: "a", 1: "b", 2: "a", 3: None}
    reports = {n: {"claim": {"host": host, "n": n}} for n, host in hosts.items()}
    del reports[3]["claim"]  # an older version of the package
    for number, expected in ((0, [0, 2]), (1, [1]), (2, [0, 2]), (3, [])):
        answer = roll_call._answer("", reports, number)
        assert [claim["n"] for claim in answer["claims"]] == expected


def test_the_port_is_free_afterwards():
    port = free_port()
    hold([0, 1], num_processes=2, port=port)
    socket.create_server(("", port)).close()


def test_the_missing_are_named_on_all_that_are_there():
    verdicts = hold([0, 2], num_processes=5, timeout_secs=1.5)
    for verdict in verdicts:
        assert "3 of 5 processes did not start within 1.5 s" in verdict
        assert "missing 1, 3, 4" in verdict
        assert re.search(r"present 0 on \S+, 2 on \S+", verdict)


def test_process_0_missing_is_told_with_its_address():
    (verdict,) = hold([1], num_processes=2, timeout_secs=1.0)
    assert re.match(r"process 0 did not answer at localhost:\d+ within 1 s", verdict)
    assert "(this is process 1 of 2 on " in verdict


def test_a_late_process_0_is_waited_for():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        early = pool.submit(hold, [1], num_processes=2, port=port)
        time.sleep(1.2)
        late = pool.submit(hold, [0], num_processes=2, port=port)
        assert early.result() == late.result() == [""]


@pytest.mark.slow
def test_an_early_process_waits_as_long_as_a_late_process_0():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        early = pool.submit(hold, [1], num_processes=3, port=port, timeout_secs=3.0)
        time.sleep(2.0)
        late = pool.submit(hold, [0], num_processes=3, port=port, timeout_secs=8.0)
        time.sleep(2.5)  # past the deadline of process 1
        last = pool.submit(hold, [2], num_processes=3, port=port)
        assert early.result() == late.result() == last.result() == [""]


def test_a_process_that_ended_is_missing_and_can_come_again():
    port = free_port()
    report = {"process_id": 1, "num_processes": 2, "host": "gone", "versions": {}}
    report["versions"] = roll_call.versions()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(hold, [0], num_processes=3, port=port)
        for _ in range(50):
            try:
                link = socket.create_connection(("localhost", port), timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        link.sendall(json.dumps({**report, "num_processes": 3}).encode() + b"\n")
        time.sleep(0.3)
        link.close()
        time.sleep(0.3)
        others = pool.submit(hold, [1, 2], num_processes=3, port=port)
        assert first.result() == [""]
        assert others.result() == ["", ""]


def test_one_number_given_twice_is_told():
    verdicts = hold([0, 1, 1], num_processes=3, timeout_secs=5.0)
    assert "process 1 has started twice" in verdicts[0]


def test_jobs_of_different_sizes_do_not_mix():
    verdicts = hold([0, 1], num_processes=2, sizes={1: 3})
    for verdict in verdicts:
        assert "process 1 on" in verdict
        assert "as one of 3 processes" in verdict


def test_other_versions_are_told(monkeypatch):
    def versions():
        # Process 1 asks second.
        yield "3.11.1"
        yield "3.12.0"

    python_versions = versions()
    started = threading.Event()
    monkeypatch.setattr(
        roll_call.platform, "python_version", lambda: next(python_versions)
    )
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(hold, [0], num_processes=2, port=port)
        started.wait(0.3)
        second = pool.submit(hold, [1], num_processes=2, port=port)
        for verdict in (*first.result(), *second.result()):
            assert "process 1 on" in verdict
            assert "has python 3.12.0, process 0" in verdict
            assert "python 3.11.1: all must have the same" in verdict


def test_other_code_of_the_package_is_told(monkeypatch):
    digests = iter(["0123456789ab", "ba9876543210"])
    monkeypatch.setattr(roll_call, "code_digest", lambda: next(digests))
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(hold, [0], num_processes=2, port=port)
        time.sleep(0.3)
        second = pool.submit(hold, [1], num_processes=2, port=port)
        for verdict in (*first.result(), *second.result()):
            assert "has simclr_jax's code ba9876543210, process 0" in verdict


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\n\r\n", b'{"process_id": 1}\n', b"[1]\n"]
)
def test_strangers_on_the_port_are_ignored(said):
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(hold, [0], num_processes=2, port=port)
        for _ in range(50):
            try:
                stranger = socket.create_connection(("localhost", port), timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        with stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            second = pool.submit(hold, [1], num_processes=2, port=port)
            assert first.result() == second.result() == [""]


def test_a_taken_port_is_told():
    with socket.create_server(("", 0)) as holder:
        port = holder.getsockname()[1]
        (verdict,) = hold([0], num_processes=2, port=port, timeout_secs=1.0)
    assert f"localhost:{port}: process 0 cannot listen there" in verdict


def test_the_report_is_one_line_of_json():
    port = free_port()
    with (
        socket.create_server(("", port)) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        other = pool.submit(hold, [2], num_processes=4, port=port)
        link, _ = server.accept()
        with link, link.makefile("rwb") as file:
            report = json.loads(file.readline())
            file.write(b'{"verdict": "no"}\n')
            file.flush()
        assert other.result() == ["no"]
    assert report["process_id"] == 2
    assert report["num_processes"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h:1", None, None), "--num_processes, --process_id: must be given too"),
        ((None, 2, 0), "--coordinator_address: must be given too"),
        (("host", 2, 0), "--coordinator_address=host: must be HOST:PORT"),
        (("host:0", 2, 0), "--coordinator_address=host:0: must be HOST:PORT"),
        (("host:99999", 2, 0), "must be HOST:PORT"),
        (("h:1", 0, 0), "--num_processes=0: must be at least 1"),
        (("h:1", 2, 2), "--process_id=2: must be between 0 and 1"),
        (("h:1", 2, -1), "--process_id=-1: must be between 0 and 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError) as caught:
        processes.start(*arguments)
    assert message in str(caught.value)


def test_a_process_alone_needs_no_start():
    processes.start()
    processes.start("localhost:1", 1, 0)
    assert processes.is_main()
    assert processes.gather_texts("a") == ["a"]


def test_slurm_is_found_without_arguments(monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "node[3-4]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "2",
    }.items():
        monkeypatch.setenv(name, value)
    job = processes._detect(1)
    assert (job.host, job.num_processes, job.process_id) == ("node3", 2, 1)
