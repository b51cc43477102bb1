"""Many processes as one program: start-up, agreement, and who speaks.

Every process runs the same code on its own slice of the batch. What one of them alone
may do (write a file, print) is guarded by `is_main`; what may fail on one of them alone
(read a dataset, see a folder) stands in `all_or_none`, so that all fail or none: a process
that leaves on its own would keep the others waiting in the next collective.
"""

import contextlib
import dataclasses
import logging
import socket
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax.errors import ConfigError, InvalidInput, RunFailed
from simclr_jax.parallel import roll_call
from simclr_jax.parallel.roll_call import Membership

_LOG = logging.getLogger(__name__)

_MAX_TEXT = 2048
# Known without JAX, which may be what has failed.
_num_processes = 1


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_secs: float = 300,
    handle_preemption: bool = False,
) -> None:
    """Joins the processes of a job; does nothing where there is only this one.

    On Cloud TPU, GKE, SLURM and Open MPI no argument is needed. Call it before anything
    touches a device.

    Args:
      coordinator_address: HOST:PORT of process 0, which all can reach.
      num_processes: how many there are.
      process_id: this one's number, from 0.
      timeout_secs: to wait for the others.
      handle_preemption: SIGTERM does not end the process: it is for `StopRequest` to see.

    Raises:
      ConfigError: some of the first three are given and some are not, or wrong.
      StartFailed: processes are missing or do not fit together; names them.
    """
    explicit = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in explicit):
        job: Membership | None = _explicit_job(*explicit)
    else:
        job = _detect(timeout_secs)
    if job is None or job.num_processes == 1:
        return
    global _num_processes
    _num_processes = job.num_processes
    if job.process_id == 0:
        _LOG.info("Waiting for %d processes ...", job.num_processes)
    roll_call.wait_for_all(job, timeout_secs=timeout_secs)
    jax.config.update("jax_enable_preemption_service", handle_preemption)
    # Without an address JAX finds the same job again, and what else to set for it.
    known = dataclasses.asdict(job) if coordinator_address is not None else {}
    jax.distributed.initialize(**known, initialization_timeout=int(timeout_secs))


def _explicit_job(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Membership:
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if coordinator_address is None or num_processes is None or process_id is None:
        raise ConfigError(
            f"{', '.join(missing)}: must be given too, since another of "
            f"{', '.join(given)} is; on Cloud TPU, GKE and SLURM leave out all three"
        )
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--coordinator_address={coordinator_address}: must be HOST:PORT, such as "
            "10.0.0.2:8476"
        )
    if num_processes < 1:
        raise ConfigError(f"--num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id}: must be between 0 and {num_processes - 1}, "
            f"since --num_processes={num_processes}"
        )
    return Membership(coordinator_address, num_processes, process_id)


def _detect(timeout_secs: float) -> Membership | None:
    """The job that this process is part of, as JAX's own start-up finds it."""
    # JAX has no public way to ask before it starts up.
    from jax._src import clusters

    address, number, own, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(timeout_secs)
    )
    if address is None or number is None or own is None:
        return None
    return Membership(address, number, own)


def others_are_waiting() -> bool:
    """Whether this process was started as one of several; asks no device."""
    return _num_processes > 1


def is_main() -> bool:
    """Whether this process writes the files and prints: number 0 does."""
    return jax.process_index() == 0


def name() -> str:
    """This process for a message: '3 of 4 on HOST'."""
    return f"{jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def gather_texts(text: str) -> list[str]:
    """Every process's text, by process number, on all of them.

    A collective: every process has to call it. Texts are cut at 2048 bytes.
    """
    if jax.process_count() == 1:
        return [text]
    padded = text.encode()[:_MAX_TEXT].ljust(_MAX_TEXT, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    return [
        bytes(row).rstrip(b"\0").decode(errors="ignore") for row in np.asarray(rows)
    ]


def barrier() -> None:
    """Returns once every process has called it."""
    gather_texts("")


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """A block that fails on all processes if it fails on one.

    Every process has to enter it, and it must hold no collective.

    Raises:
      Exception: what the block raised here, or an InvalidInput or RunFailed that names
        the process which failed and repeats what it said.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    kind = "" if own is None else "input" if isinstance(own, InvalidInput) else "run"
    said = gather_texts(f"{kind}|{name()}|{own or ''}")
    if own is not None:
        raise own
    for text in said:
        kind, who, message = text.split("|", 2)
        if kind:
            failure = InvalidInput if kind == "input" else RunFailed
            raise failure(f"process {who}: {message}")


def require_equal(what: str, value: str) -> None:
    """Raises where processes differ in something that has to be the same.

    A collective: every process has to call it.

    Raises:
      ConfigError: names the first process that differs from process 0, and both values.
    """
    values = gather_texts(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise ConfigError(
                f"process {number} has {what} {other}, process 0 {values[0]}: all "
                "must have the same"
            )
