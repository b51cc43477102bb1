"""Waits until all processes of a job have started, and names the missing ones.

Kept because JAX's own start-up ends the process when another one is missing, without
naming it or a difference in versions. So every process first reports to process 0, on
the port that JAX uses afterwards, and receives its verdict.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import platform
import selectors
import socket
import time
from typing import Any

import jax

from simclr_jax import host_resources
from simclr_jax.errors import StartFailed
from simclr_jax.host_resources import Claim

_SECS_BETWEEN_TRIES = 0.5
# Time for process 0 to send its verdict after the time-out.
_VERDICT_SECS = 10.0
# Time for a connected process to send its report.
_REPORT_SECS = 5.0
_MAX_LINE = 65536


@dataclasses.dataclass(frozen=True)
class Membership:
    """The place of this process in a job.

    Attributes:
      coordinator_address: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: number of this process, from 0.
    """

    coordinator_address: str
    num_processes: int
    process_id: int

    @property
    def host(self) -> str:
        """Host of process 0."""
        return self.coordinator_address.rsplit(":", 1)[0].strip("[]")

    @property
    def port(self) -> int:
        """Port that process 0 listens on."""
        return int(self.coordinator_address.rsplit(":", 1)[1])


@functools.cache
def code_digest() -> str:
    """A digest of this package's source code, 12 hex digits."""
    digest = hashlib.sha256()
    folder = pathlib.Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
    """What all processes must have the same version of."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "simclr_jax's code": code_digest(),
    }


def wait_for_all(job: Membership, *, timeout_secs: float) -> list[Claim]:
    """Returns once all processes have started with the same versions.

    Args:
      job: with more than one process.
      timeout_secs: time to wait for the other processes.

    Returns:
      What each process on this host may use if it is alone, this one included.

    Raises:
      StartFailed: on all processes that have started; names the processes that are
        missing, have a duplicate number, or have other versions.
    """
    report = {
        "process_id": job.process_id,
        "num_processes": job.num_processes,
        "host": socket.gethostname(),
        "versions": versions(),
        "claim": dataclasses.asdict(host_resources.read_claim()),
    }
    deadline = time.monotonic() + timeout_secs
    if job.process_id == 0:
        answer = _collect(job, report, deadline, timeout_secs)
    else:
        answer = _report(job, report, deadline, timeout_secs)
    if answer["verdict"]:
        raise StartFailed(answer["verdict"])
    return [Claim.from_json(claim) for claim in answer["claims"]]


def _collect(
    job: Membership, report: dict[str, Any], deadline: float, timeout_secs: float
) -> dict[str, Any]:
    """On process 0: waits for the reports and sends everyone its answer.

    Returns:
      The answer to process 0: the `verdict`, '' if all is well, and the `claims` of the
      processes on its host.
    """
    reports = {0: report}
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
            verdict = (
                f"--coordinator_address={job.coordinator_address}: process 0 cannot "
                f"listen there ({error}); is an earlier run still active?"
            )
            return {"verdict": verdict}
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        numbers: dict[Any, int] = {}
        verdict = ""
        while not verdict and len(reports) < job.num_processes:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                verdict = _missing(job, reports, timeout_secs)
                break
            for key, _ in selector.select(timeout=remaining):
                if key.fileobj is not server:
                    # A process sends only its report, so this one has ended.
                    selector.unregister(key.fileobj)
                    del reports[numbers.pop(key.fileobj)]
                    continue
                connection = stack.enter_context(server.accept()[0])
                number, problem = _receive(reports, connection)
                verdict = verdict or problem
                if number is not None:
                    numbers[connection] = number
                    selector.register(connection, selectors.EVENT_READ)
        for connection, number in numbers.items():
            line = json.dumps(_answer(verdict, reports, number)) + "\n"
            with contextlib.suppress(OSError):
                connection.sendall(line.encode())
        return _answer(verdict, reports, 0)


def _answer(
    verdict: str, reports: dict[int, dict[str, Any]], number: int
) -> dict[str, Any]:
    """What process 0 tells another one, or itself."""
    # A process that runs an older version of this package reports none.
    hosts = {n: report.get("claim", {}).get("host") for n, report in reports.items()}
    here = hosts.get(number)
    neighbours = [n for n, host in hosts.items() if host and host == here]
    return {"verdict": verdict, "claims": [reports[n]["claim"] for n in neighbours]}


def _receive(
    reports: dict[int, dict[str, Any]], connection: socket.socket
) -> tuple[int | None, str]:
    """Receives one report.

    Returns:
      (process number, description of the problem or ''). The number is None for
      connections that send no valid report; they are ignored.
    """
    try:
        connection.settimeout(_REPORT_SECS)
        report = json.loads(_read_line(connection))
        number, host = int(report["process_id"]), report["host"]
        theirs, others = dict(report["versions"]), int(report["num_processes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""
    first = reports[0]
    problem = ""
    if others != first["num_processes"]:
        problem = (
            f"process {number} on {host} was started as one of {others} processes, "
            f"process 0 on {first['host']} as one of {first['num_processes']}"
        )
    elif number in reports:
        problem = (
            f"process {number} has started twice, on {reports[number]['host']} and on "
            f"{host}: each must have a number of its own"
        )
    elif theirs != first["versions"]:
        own = first["versions"]
        differ = [k for k in own | theirs if theirs.get(k) != own.get(k)]
        problem = (
            f"process {number} on {host} has {_text(theirs, differ)}, process 0 on "
            f"{first['host']} {_text(own, differ)}: all must have the same"
        )
    else:
        reports[number] = report
    return number, problem


def _report(
    job: Membership, report: dict[str, Any], deadline: float, timeout_secs: float
) -> dict[str, Any]:
    """On other processes: reports to process 0 until it answers."""
    line = (json.dumps(report) + "\n").encode()
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(
                (job.host, job.port), timeout=remaining
            ) as link:
                link.sendall(line)
                # Process 0 may have started later, and its time-out runs from then.
                link.settimeout(timeout_secs + _VERDICT_SECS)
                answer = json.loads(_read_line(link))
                claims = answer.get("claims", [])
                return {"verdict": str(answer["verdict"]), "claims": claims}
        except (OSError, ValueError, KeyError):
            # Not started yet, or another program had the port.
            time.sleep(min(_SECS_BETWEEN_TRIES, max(remaining, 0)))
    verdict = (
        f"process 0 did not answer at {job.coordinator_address} within "
        f"{timeout_secs:g} s (this is process {job.process_id} of "
        f"{job.num_processes} on {report['host']}): was it started, and is the port "
        "open in the firewall?"
    )
    return {"verdict": verdict}


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
        f"{timeout_secs:g} s: missing {names}; present {present}"
    )


def _text(versions: dict[str, str], names: list[str]) -> str:
    return " and ".join(f"{name} {versions.get(name)}" for name in names)
