"""Several processes on this machine that make up one program."""

import hashlib
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
_TIMEOUT_SECS = 900


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    command: list[str], *, num_processes: int, devices_each: int
) -> list[subprocess.Popen]:
    """Starts `python COMMAND` in each process.

    Where there is more than one, each gets the flags of a job.
    """
    environment = {
        # Gloo pairs sums by their order, which more threads than cores would mix up.
        **{key: value for key, value in os.environ.items() if key != "PJRT_NPROC"},
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_NUM_CPU_DEVICES": str(devices_each),
    }
    port = free_port()
    started = []
    for number in range(num_processes):
        flags = [
            f"--coordinator_address=127.0.0.1:{port}",
            f"--num_processes={num_processes}",
            f"--process_id={number}",
        ]
        started.append(
            subprocess.Popen(
                [sys.executable, *command, *(flags if num_processes > 1 else [])],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Waits for the processes of `start`; returns their (exit code, output)."""
    try:
        outputs = [process.communicate(timeout=_TIMEOUT_SECS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        (process.returncode, output)
        for process, output in zip(started, outputs, strict=True)
    ]


def run(
    command: list[str], *, num_processes: int, devices_each: int
) -> list[tuple[int, str]]:
    """Runs `python COMMAND` in each process and returns their (exit code, output)."""
    return finish(
        start(command, num_processes=num_processes, devices_each=devices_each)
    )


def checksum(batch: dict[str, np.ndarray]) -> str:
    """Of all arrays of a batch, to the bit."""
    digest = hashlib.sha256()
    for name in sorted(batch):
        digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()
