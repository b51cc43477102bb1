"""Multi-process helpers: start-up, all-or-none error handling, process-0 output.

Every process runs the same code on its own slice of the batch. What only one process
may do (write a file, print) is guarded by `is_main`. What may fail on a single process
(read a dataset, see a folder) runs inside `all_or_none`, so that all processes fail or
none: if one left alone, the others would wait for it in the next collective.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import re
import socket
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from simclr_jax import host_resources, signals
from simclr_jax.errors import ConfigError, InvalidInput, RunFailed
from simclr_jax.parallel import roll_call
from simclr_jax.parallel.agreement import Agreement
from simclr_jax.parallel.postings import Postings
from simclr_jax.parallel.roll_call import Membership

_LOG = logging.getLogger(__name__)

_MAX_TEXT = 2048
# Kept outside JAX, whose start-up may have failed.
_num_processes = 1
_agreement = Agreement()
_num_topics = itertools.count()
# Time for the others to read that process 0 ends, before the service ends with it.
_NOTICE_SECS = 1.0


def start(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_secs: float = 300,
) -> None:
    """Joins the processes of a job; does nothing if there is only one process.

    On Cloud TPU, GKE, SLURM and Open MPI no argument is needed. Call it before anything
    touches a device.

    Args:
      coordinator_address: HOST:PORT of process 0, reachable from all processes.
      num_processes: number of processes.
      process_id: number of this process, from 0.
      timeout_secs: time to wait for the other processes.

    Raises:
      ConfigError: only some of the first three are given, or one has a bad value.
      StartFailed: processes are missing or do not match; the message names them.
    """
    explicit = (coordinator_address, num_processes, process_id)
    if any(value is not None for value in explicit):
        job: Membership | None = _explicit_job(*explicit)
    else:
        job = _detect(timeout_secs)
    alone = job is None or job.num_processes == 1
    serve_virtual_devices(alone)
    if job is None or alone:
        return
    global _num_processes
    _num_processes = job.num_processes
    if job.process_id == 0:
        _LOG.info("Waiting for %d processes ...", job.num_processes)
    claims = roll_call.wait_for_all(job, timeout_secs=timeout_secs)
    host_resources.share_with(claims)
    # It would take SIGTERM from `signals`; `agreement` does its work.
    jax.config.update("jax_enable_preemption_service", False)
    # Without an address JAX detects the same job again, with its other settings.
    arguments = dataclasses.asdict(job) if coordinator_address is not None else {}
    jax.distributed.initialize(**arguments, initialization_timeout=int(timeout_secs))
    _listen_to_others(job)


def _listen_to_others(job: Membership) -> None:
    """Opens the agreement; a process that a signal ends tells the others."""
    # JAX has no public way to its coordination service.
    from jax._src import distributed

    global _agreement
    _agreement = Agreement(
        distributed.global_state.client,
        process_id=job.process_id,
        on_left=lambda reason: signals.end(reason, signals.EXIT_CODES[signals.SIGTERM]),
    )
    # Not by `name`, which would touch the devices.
    who = f"process {job.process_id} of {job.num_processes} on {socket.gethostname()}"

    def tell(reason: str) -> None:
        _agreement.leave(f"{who} was {reason}, so this process ends too")
        if job.process_id == 0:
            time.sleep(_NOTICE_SECS)

    signals.call_before_ending(tell)


def agreement() -> Agreement:
    """The requests of all processes of this job; see `Agreement`."""
    return _agreement


def postings(topic: str) -> Postings:
    """Texts for process 0; see `Postings`. All processes call it in the same order."""
    # JAX has no public way to its coordination service.
    from jax._src import distributed

    state = distributed.global_state
    number = next(_num_topics)
    return Postings(state.client, f"{topic}/{number}", process_id=state.process_id)


def serve_virtual_devices(alone: bool = True) -> None:
    """Keeps the collectives of several CPU devices of one process from a deadlock.

    The devices wait for each other in threads of one pool. XLA's default scheduler lets
    a device wait in two collectives at once, and other devices in another order, until
    all wait for one that gets no thread. So collectives run in one order, in a pool of
    two threads for each device. One CPU device of each of several processes needs the
    order too, since Gloo pairs what processes send by it. Otherwise does nothing with
    one CPU device, the default. Call it before anything touches a device.

    Args:
      alone: whether this is the only process. With others the pool keeps its size,
        since Gloo would pair sums in the wrong order if there were more threads than
        cores.
    """
    num_devices = getattr(jax.config, "jax_num_cpu_devices", 1)
    set_flags = os.environ.get("XLA_FLAGS", "")
    if forced := re.search(r"--xla_force_host_platform_device_count=(\d+)", set_flags):
        num_devices = int(forced[1])
    platforms = getattr(jax.config, "jax_platforms", None)
    shares_cpus = not alone and platforms == "cpu"
    if num_devices < 2 and not shares_cpus:
        return
    name = "--xla_cpu_enable_concurrency_optimized_scheduler"
    if name not in set_flags:
        os.environ["XLA_FLAGS"] = f"{set_flags} {name}=false".lstrip()
    if alone:
        os.environ.setdefault("PJRT_NPROC", str(2 * num_devices))


def _explicit_job(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> Membership:
    values = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [flag for flag, value in values.items() if value is None]
    if coordinator_address is None or num_processes is None or process_id is None:
        raise ConfigError(
            f"{', '.join(missing)}: must be given too, since another of "
            f"{', '.join(values)} is; on Cloud TPU, GKE and SLURM leave out all three"
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
    """The job that this process is part of, as JAX's start-up detects it."""
    # JAX has no public function for it before start-up.
    from jax._src import clusters

    address, num_processes, process_id, _ = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(timeout_secs)
        )
    )
    if address is None or num_processes is None or process_id is None:
        return None
    return Membership(address, num_processes, process_id)


def others_are_waiting() -> bool:
    """Whether this process was started as one of several; touches no device."""
    return _num_processes > 1


def place() -> tuple[int, int]:
    """(number of this process, number of all) as of start-up; touches no device."""
    # JAX has no public function for it that does not start a backend.
    from jax._src import distributed

    state = distributed.global_state
    return state.process_id, state.num_processes or 1


def is_main() -> bool:
    """Whether this is process 0, the one that writes files and prints."""
    return jax.process_index() == 0


def name() -> str:
    """Names this process in messages: '3 of 4 on HOST'."""
    return f"{jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def gather_texts(text: str) -> list[str]:
    """The texts of all processes, by process number.

    A collective: every process must call it. Texts are cut at 2048 bytes.
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
    """A context that fails on all processes if it fails on one.

    Every process must enter it, and its body must contain no collective.

    Raises:
      Exception: the exception of the body on this process, or an InvalidInput or
        RunFailed with the name of the process that failed and its message.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    kind = ""
    if error is not None:
        kind = "input" if isinstance(error, InvalidInput) else "run"
    texts = gather_texts(f"{kind}|{name()}|{error or ''}")
    if error is not None:
        raise error
    for text in texts:
        kind, who, message = text.split("|", 2)
        if kind:
            failure = InvalidInput if kind == "input" else RunFailed
            raise failure(f"process {who}: {message}")


def require_equal(what: str, value: str) -> None:
    """Raises if a value differs between processes.

    A collective: every process must call it.

    Args:
      what: name of the value, for the message.
      value: of this process.

    Raises:
      ConfigError: names the first process that differs from process 0, and both
        values.
    """
    values = gather_texts(value)
    for number, other in enumerate(values):
        if other != values[0]:
            raise ConfigError(
                f"process {number} has {what} {other}, process 0 {values[0]}: all "
                "must have the same"
            )
