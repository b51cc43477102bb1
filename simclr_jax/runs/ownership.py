"""One owner of a run directory: a lease that is renewed while a training runs.

The file `owner.json` names the process that writes the directory. It is renewed every
few seconds, so a lease that is not renewed has lost its owner: on this machine that is
seen at once, on another one after `EXPIRY_SECS`. Clocks of hosts are not compared: what
counts is whether the file changes while somebody watches. An owner that was stopped for
longer than that finds another one's name in the file when it wakes up, and ends.
"""

import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from simclr_jax import paths
from simclr_jax.errors import InvalidInput, RunFailed, RunOwned
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic, directory

_LOG = logging.getLogger(__name__)

FILE_NAME = "owner.json"
RENEWAL_SECS = 15.0
# Three renewals may fail, as where a store does not answer for a while.
EXPIRY_SECS = 60.0
# On a store two processes may both write the file: who is in it after this time wins.
_SETTLING_SECS = 2.0
# The owner that a damaged file names: it can only be watched.
_UNKNOWN: dict[str, Any] = {
    "token": "",
    "host": "an unknown host",
    "machine": "",
    "process": 0,
    "started": None,
    "since": "an unknown time",
}


@contextlib.contextmanager
def owned(workdir: str) -> Iterator["Ownership"]:
    """Creates the run directory, and holds its lease until the context is left.

    Every process has to enter it; process 0 holds the lease for all.

    Raises:
      RunOwned: another process trains in it.
      ConfigError: it cannot be created or written, or another process of this job sees
        a different one.
    """
    directory.make_folder(workdir)
    owner = Ownership(workdir)
    try:
        with processes.all_or_none():
            if processes.is_main():
                owner.acquire()
        yield owner
    finally:
        owner.release()


def holder(workdir: str) -> tuple[str, bool] | None:
    """Who is named in the lease, in words, and whether it still runs; None if nobody.

    It does not wait: of a process on another machine only the age of the file is known,
    by this machine's clock.

    Raises:
      ConfigError: the lease cannot be read.
    """
    path = paths.as_path(workdir) / FILE_NAME
    owner = _read(path)
    if owner is None:
        return None
    if owner["machine"] == _machine():
        return _described(owner), _started(owner["process"]) == owner["started"]
    with atomic.one_line(f"file {path}: cannot be read"):
        age_secs = time.time() - path.stat().mtime
    return _described(owner), age_secs < EXPIRY_SECS


class Ownership:
    """The lease of one process on a run directory, from `acquire` to `release`."""

    def __init__(self, workdir: str) -> None:
        """Holds nothing yet.

        Args:
          workdir: the run directory, which must be there.
        """
        self._workdir = workdir
        self._path = paths.as_path(workdir) / FILE_NAME
        self._name = _me()
        self._renewals = 0
        self._lost: str | None = None
        self._seen_at = time.monotonic()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the directory; from a process that is gone if need be.

        Raises:
          RunOwned: another process trains in it.
          ConfigError: the file cannot be written.
        """
        while not self._create():
            owner = _read(self._path)
            if owner is None:
                continue
            if not self._is_gone(owner):
                raise RunOwned(
                    f"--workdir={self._workdir}: a training runs in it, "
                    f"{_described(owner)}; stop that one, or use another workdir"
                )
            _LOG.warning(
                "Taking the run directory over from %s, which is gone.",
                _described(owner),
            )
            self._remove(owner)
        self._thread = threading.Thread(
            target=self._renew, name="simclr_jax_owner", daemon=True
        )
        self._thread.start()

    def check(self, *, now: bool = False) -> None:
        """Makes sure that the directory is still this process's.

        Args:
          now: read the file; otherwise only where it was not read for a while, as
            after this process was stopped.

        Raises:
          RunFailed: another process has taken it, or it was deleted.
        """
        if self._thread is None:
            return
        overdue = time.monotonic() - self._seen_at > 2 * RENEWAL_SECS
        if (now or overdue) and self._lost is None:
            self._look()
        if self._lost:
            raise RunFailed(f"--workdir={self._workdir}: {self._lost}")

    def release(self) -> None:
        """Frees the directory, if it is still this process's."""
        self._ending.set()
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        try:
            owner = _read(self._path)
            if owner is not None and owner["token"] == self._name["token"]:
                with atomic.one_line(f"file {self._path}: cannot be removed"):
                    self._path.unlink(missing_ok=True)
        except InvalidInput as error:
            _LOG.warning("%s", error)

    def _create(self) -> bool:
        """Whether the file is now this process's; false if another one's is there."""
        text = self._content()
        if paths.is_store(self._path):
            if self._path.exists():
                return False
            atomic.write_file(self._path, text)
            time.sleep(_SETTLING_SECS)
            owner = _read(self._path)
            return owner is not None and owner["token"] == self._name["token"]
        with atomic.one_line(f"file {self._path}: cannot be written"):
            try:
                descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
        return True

    def _content(self) -> str:
        return json.dumps({**self._name, "renewals": self._renewals}) + "\n"

    def _is_gone(self, owner: dict[str, Any]) -> bool:
        """Whether the process in the file no longer runs; waits if need be."""
        if owner["machine"] == self._name["machine"]:
            return _started(owner["process"]) != owner["started"]
        _LOG.warning(
            "The run directory is that of %s. Watching for up to %.0f seconds whether "
            "it is still there.",
            _described(owner),
            EXPIRY_SECS,
        )
        deadline = time.monotonic() + EXPIRY_SECS
        while time.monotonic() < deadline:
            time.sleep(min(1.0, EXPIRY_SECS / 10))
            now = _read(self._path)
            if now is None:
                return True
            if now != owner:
                return False
        return True

    def _remove(self, owner: dict[str, Any]) -> None:
        """Removes the file, unless it changed meanwhile."""
        if _read(self._path) != owner:
            return
        with atomic.one_line(f"file {self._path}: cannot be removed"):
            if paths.is_store(self._path):
                self._path.unlink(missing_ok=True)
                return
            # Of several that find the owner gone, one can rename its file.
            aside = f"{self._path}.{self._name['token']}"
            try:
                os.rename(self._path, aside)
            except FileNotFoundError:
                return
            os.unlink(aside)

    def _renew(self) -> None:
        while not self._ending.wait(RENEWAL_SECS) and self._lost is None:
            self._look(renew=True)

    def _look(self, *, renew: bool = False) -> None:
        try:
            owner = _read(self._path)
            config = paths.as_path(self._workdir) / directory.CONFIG
            if owner is None and not config.exists():
                self._lost = "was deleted while a training ran in it"
            elif owner is not None and owner["token"] != self._name["token"]:
                self._lost = (
                    f"is now that of {_described(owner)}, which did not hear of this "
                    f"process for {EXPIRY_SECS:.0f} seconds; this one ends"
                )
            elif renew or owner is None:
                self._renewals += 1
                atomic.write_file(self._path, self._content())
            self._seen_at = time.monotonic()
        except InvalidInput as error:
            # The next look may succeed; a save that fails ends the run.
            _LOG.warning("%s", error)


def _me() -> dict[str, Any]:
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _machine() -> str:
    """What processes that see each other's numbers have in common."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str | None:
    """When a process of this machine started, in the kernel's count; None if gone."""
    if not os.path.exists("/proc/self/stat"):  # not Linux
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "at an unknown time"
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # After the name, which may contain anything: state is field 3, start field 22.
    fields = status.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _read(path: epath.Path) -> dict[str, Any] | None:
    """The owner; None where there is no file, or it says nothing."""
    with atomic.one_line(f"file {path}: cannot be read"):
        try:
            owner = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            owner = {}
    if isinstance(owner, dict) and owner.keys() >= _UNKNOWN.keys():
        return owner
    # Half written, or damaged.
    return {**_UNKNOWN, "content": repr(owner)}


def _described(owner: dict[str, Any]) -> str:
    return f"process {owner['process']} on {owner['host']} since {owner['since']}"
