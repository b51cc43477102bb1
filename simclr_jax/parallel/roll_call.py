"""Waits until all processes of a job are there, and says which are not.

JAX's own start-up ends the process when somebody is missing and does not say who. So
every process first reports to process 0, on the port that JAX takes over afterwards,
and gets the verdict from it.
"""

import contextlib
import dataclasses
import json
import platform
import selectors
import socket
import time
from typing import Any

import jax

from simclr_jax.errors import StartFailed

_SECS_BETWEEN_TRIES = 0.5
# Given to process 0 to send its verdict after the time-out.
_VERDICT_SECS = 10.0
# In which a process that has connected must have said who it is.
_REPORT_SECS = 5.0
_MAX_LINE = 65536


@dataclasses.dataclass(frozen=True)
class Membership:
    """The processes of one run.

    Attributes:
      coordinator_address: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: this one's number.
    """

    coordinator_address: str
    num_processes: int
    process_id: int

    @property
    def host(self) -> str:
        """Of process 0."""
        return self.coordinator_address.rsplit(":", 1)[0].strip("[]")

    @property
    def port(self) -> int:
        """That process 0 listens on."""
        return int(self.coordinator_address.rsplit(":", 1)[1])


def wait_for_all(job: Membership, *, timeout_secs: float) -> None:
    """Returns once all processes are there with the same versions.

    Args:
      job: with more than one process.
      timeout_secs: to wait for the others.

    Raises:
      StartFailed: names the processes that are missing, there twice, or of other
        versions; on all processes that are there.
    """
    report = {
        "process_id": job.process_id,
        "num_processes": job.num_processes,
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
    }
    deadline = time.monotonic() + timeout_secs
    if job.process_id == 0:
        verdict = _collect(job, report, deadline, timeout_secs)
    else:
        verdict = _report(job, report, deadline, timeout_secs)
    if verdict:
        raise StartFailed(verdict)


def _collect(
    job: Membership, own: dict[str, Any], deadline: float, timeout_secs: float
) -> str:
    """Process 0: waits for the others' reports and sends all the verdict."""
    reports = {0: own}
    with contextlib.ExitStack() as stack:
        try:
            both = socket.has_dualstack_ipv6()
            server = socket.create_server(
                ("", job.port),
                family=socket.AF_INET6 if both else socket.AF_INET,
                backlog=1024,
                dualstack_ipv6=both,
            )
            stack.enter_context(server)
        except OSError as error:
            return (
                f"--coordinator_address={job.coordinator_address}: process 0 cannot "
                f"listen there ({error}); is a former run still going?"
            )
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        numbers: dict[Any, int] = {}
        verdict = ""
        while not verdict and len(reports) < job.num_processes:
            left = deadline - time.monotonic()
            if left <= 0:
                verdict = _missing(job, reports, timeout_secs)
                break
            for key, _ in selector.select(timeout=left):
                if key.fileobj is not server:
                    # They have nothing more to say: this one has ended.
                    selector.unregister(key.fileobj)
                    del reports[numbers.pop(key.fileobj)]
                    continue
                connection = stack.enter_context(server.accept()[0])
                number, wrong = _enter(reports, connection)
                verdict = verdict or wrong
                if number is not None:
                    numbers[connection] = number
                    selector.register(connection, selectors.EVENT_READ)
        line = (json.dumps({"verdict": verdict}) + "\n").encode()
        for connection in numbers:
            with contextlib.suppress(OSError):
                connection.sendall(line)
        return verdict


def _enter(
    reports: dict[int, dict[str, Any]], connection: socket.socket
) -> tuple[int | None, str]:
    """Takes one report; returns its number, and what is wrong with it.

    Strangers have no number and are ignored.
    """
    try:
        connection.settimeout(_REPORT_SECS)
        report = json.loads(_read_line(connection))
        number, host = int(report["process_id"]), report["host"]
        versions, others = report["versions"], int(report["num_processes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""
    own = reports[0]
    wrong = ""
    if others != own["num_processes"]:
        wrong = (
            f"process {number} on {host} was started as one of {others} processes, "
            f"process 0 on {own['host']} as one of {own['num_processes']}"
        )
    elif number in reports:
        wrong = (
            f"process {number} is there twice, on {reports[number]['host']} and on "
            f"{host}: each must have a number of its own"
        )
    elif versions != own["versions"]:
        wrong = (
            f"process {number} on {host} has {_text(versions)}, process 0 on "
            f"{own['host']} {_text(own['versions'])}: all must have the same"
        )
    else:
        reports[number] = report
    return number, wrong


def _report(
    job: Membership, report: dict[str, Any], deadline: float, timeout_secs: float
) -> str:
    """Another process: reports to process 0 until it answers; returns its verdict."""
    line = (json.dumps(report) + "\n").encode()
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((job.host, job.port), timeout=left) as link:
                link.sendall(line)
                # Process 0 may have started later, and waits as long from there.
                link.settimeout(timeout_secs + _VERDICT_SECS)
                return str(json.loads(_read_line(link))["verdict"])
        except (OSError, ValueError, KeyError):
            # Not there yet, or something else that held the port and went.
            time.sleep(min(_SECS_BETWEEN_TRIES, max(left, 0)))
    return (
        f"process 0 did not answer at {job.coordinator_address} within "
        f"{timeout_secs:g} s (this is process {job.process_id} of "
        f"{job.num_processes} on {report['host']}): was it started, and does no "
        "firewall lie between?"
    )


def _read_line(link: socket.socket) -> bytes:
    with link.makefile("rb") as file:
        return file.readline(_MAX_LINE)


def _missing(
    job: Membership, reports: dict[int, dict[str, Any]], timeout_secs: float
) -> str:
    missing = [i for i in range(job.num_processes) if i not in reports]
    names = ", ".join(map(str, missing))
    present = ", ".join(f"{i} on {reports[i]['host']}" for i in sorted(reports))
    return (
        f"{len(missing)} of {job.num_processes} processes did not start within "
        f"{timeout_secs:g} s: missing {names}; there are {present}"
    )


def _text(versions: dict[str, str]) -> str:
    return " and ".join(f"{name} {version}" for name, version in versions.items())
