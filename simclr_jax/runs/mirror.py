"""Copies the files that a run appends to from a local folder to its run directory.

A store has no appending, and a mounted bucket gets a file when it is closed: a file
kept open for the whole run would be lost with the machine.
"""

import logging
import os
import pathlib
import threading

from etils import epath

from simclr_jax.errors import RunFailed, first_line

_LOG = logging.getLogger(__name__)


class Mirror:
    """Copies files that have changed, in a thread of its own, now and then."""

    def __init__(
        self, source: pathlib.Path, target: epath.Path, *, every_secs: float = 30.0
    ) -> None:
        """Starts the thread.

        Args:
          source: a local folder of files that grow, and of folders of such.
          target: the folder that gets the copies.
          every_secs: how often.
        """
        self.source, self._target = source, target
        self._every_secs = every_secs
        self._copied: dict[str, tuple[int, int]] = {}
        self._failure = ""
        self._wake, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")
        self._thread.start()

    def copy_soon(self) -> None:
        """Starts to copy now; returns at once."""
        self._wake.set()

    def close(self) -> None:
        """Copies for the last time and ends the thread.

        Raises:
          RunFailed: a file could not be copied.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        if self._failure:
            raise RunFailed(f"{self._failure}; the local copy is in {self.source}")

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._every_secs)
            self._wake.clear()
            self._copy_changed()

    def _copy_changed(self) -> None:
        for path in self._files():
            try:
                self._copy(path)
            # Of the disk or of a store's library. The run goes on: the next copy has
            # what this one lacks.
            except Exception as error:
                if not path.exists():  # a temporary file of a writer
                    continue
                target = self._target / self._name(path)
                reason = first_line(error)
                self._failure = f"file {target}: cannot be written ({reason})"
                _LOG.warning("%s; retries in %g s", self._failure, self._every_secs)
                return
        self._failure = ""

    def _files(self) -> list[pathlib.Path]:
        # `os.walk` passes over folders that vanish meanwhile.
        found = [
            pathlib.Path(folder, name)
            for folder, _, names in os.walk(self.source)
            for name in names
        ]
        return sorted(p for p in found if p.is_file() and not p.is_symlink())

    def _name(self, path: pathlib.Path) -> str:
        return path.relative_to(self.source).as_posix()

    def _copy(self, path: pathlib.Path) -> None:
        name, status = self._name(path), path.stat()
        # Of the time before it is read: what grows meanwhile is copied again.
        state = (status.st_size, status.st_mtime_ns)
        if self._copied.get(name) == state:
            return
        target = self._target / name
        if path.parent != self.source:
            target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        self._copied[name] = state
