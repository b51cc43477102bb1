"""Runs a command on given cores and measures its time, from start to end.

Processor time is that of the process and of all that it waited for. What is used up to
the end of the first step, with imports and compilation, is told apart.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence

_POLL_SECS = 0.05
_running: set[subprocess.Popen] = set()
_TICKS = os.sysconf("SC_CLK_TCK")


def run(
    command: Sequence[str],
    *,
    cores: Sequence[int],
    log: pathlib.Path,
    first_step: pathlib.Path | None = None,
) -> dict[str, float]:
    """Seconds of wall and processor time; JAX and PyTorch use as many threads as cores.

    Args:
      command: argument list.
      cores: that it may use.
      log: gets its output.
      first_step: a file that has content once the first step is done.

    Raises:
      SystemExit: the command failed.
    """
    root = pathlib.Path(__file__).parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(len(cores)),
    }
    # Of this thread alone; the process that it starts inherits it.
    os.sched_setaffinity(0, set(cores))
    start = time.monotonic()
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # A group of its own, with the workers that it starts.
            process_group=0,
        )
        _running.add(process)
        times: dict[str, float] = {}
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if first_step and not times and _has_content(first_step):
                times["first_step_secs"] = time.monotonic() - start
                times["first_step_cpu_secs"] = _cpu_secs(process.pid)
            time.sleep(_POLL_SECS)
        process.returncode = os.waitstatus_to_exitcode(status)
        _running.discard(process)
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nfailed; the end of {log}:\n{tail}")
    times["secs"] = time.monotonic() - start
    times["cpu_secs"] = usage.ru_utime + usage.ru_stime
    return times


def stop() -> None:
    """Ends what runs, in any thread."""
    for process in tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def _has_content(path: pathlib.Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _cpu_secs(pid: int) -> float:
    """Of a process, the ended ones that it waited for, and its running children."""
    try:
        # The name, in brackets, may have spaces.
        fields = (
            pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        )
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return 0.0
    own = sum(map(int, fields[11:15])) / _TICKS
    return own + sum(_cpu_secs(int(child)) for child in children)
