"""Lets all processes act after the same step, whichever of them asks.

A signal reaches one process, or the clock of process 0 says that it is time to save,
but to save and to stop are collectives: all processes must do it after the same step.
Nothing is exchanged at a step where nobody asks. A request goes into the key-value
store of JAX's coordination service, where a thread of every process waits for it; these
threads tell each other how many steps their process has made, and the request is due
after the step that follows the largest number.

Kept because JAX's preemption service, which agrees in this way, does so once for one
signal, and takes SIGTERM from everybody else.
"""

import atexit
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import jax

_LOG = logging.getLogger(__name__)

_KEY = "simclr_jax/requests"
_LEFT = "left: "
# How long a thread waits for a request at a time, and so for how long it can keep the
# process from its end: Python ends badly while one is inside a library.
_WAIT_MS = 1000
_END_SECS = 10.0
# Only threads take part, which nothing keeps long.
_AGREE_MS = 300_000


class Agreement:
    """The requests of all processes of a job."""

    def __init__(
        self,
        client: Any = None,
        *,
        process_id: int = 0,
        on_left: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Starts to listen.

        Args:
          client: of JAX's coordination service; None for a process that is alone.
          process_id: of this process.
          on_left: called in a thread with the reason when another process has left.
        """
        self._client = client
        self._process_id = process_id
        self._on_left = on_left
        self._lock = threading.Lock()
        self._calls = 0
        self._due: dict[int, set[str]] = {}
        self._next_request = 0
        self._others_know = client is None
        self._closing = False
        if client is not None:
            self._thread = threading.Thread(
                target=self._listen, daemon=True, name="requests"
            )
            self._thread.start()
            # Before JAX leaves the coordination service, which registered earlier.
            atexit.register(self.close)

    def ask(self, what: str) -> None:
        """Asks for something on all processes; returns without waiting for them."""
        if self._client is None:
            with self._lock:
                self._due.setdefault(self._calls + 1, set()).add(what)
            return
        self._announce(what)

    def due(self) -> set[str]:
        """What is due now; the same on all processes.

        Every process must call it after every step.
        """
        # While the threads agree they hold the lock: the number that this process has
        # told the others stays true.
        with self._lock:
            self._calls += 1
            return self._due.pop(self._calls, set())

    def meet(self, name: str, *, timeout_secs: float) -> bool:
        """Waits until every process is here, without a device.

        Args:
          name: of the place, which no other call may have had.
          timeout_secs: how long to wait.

        Returns:
          Whether all came in time.
        """
        if self._client is None:
            return True
        try:
            self._client.wait_at_barrier(
                f"{_KEY}/meet/{name}", int(timeout_secs * 1000)
            )
        except jax.errors.JaxRuntimeError:
            return False
        return True

    def leave(self, reason: str) -> None:
        """Tells the other processes that this one ends now, so that they end too."""
        if not self._others_know:
            self._others_know = True
            self._announce(_LEFT + reason)

    def close(self) -> None:
        """Ends the thread."""
        if self._client is not None:
            self._closing = True
            self._thread.join(_END_SECS)

    def _announce(self, text: str) -> None:
        number = self._next_request
        while True:
            try:
                self._client.key_value_set(f"{_KEY}/{number}", text)
                return
            except jax.errors.JaxRuntimeError as error:
                if "ALREADY_EXISTS" not in str(error):
                    raise
                number += 1

    def _listen(self) -> None:
        while not self._closing:
            try:
                text = self._client.blocking_key_value_get(
                    f"{_KEY}/{self._next_request}", _WAIT_MS
                )
                if text.startswith(_LEFT):
                    if not self._others_know:
                        self._others_know = True
                        self._on_left(text.removeprefix(_LEFT))
                else:
                    self._agree(text)
                self._next_request += 1
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    # The job is over, or has lost a process, which JAX tells.
                    _LOG.debug("no more requests", exc_info=error)
                    return

    def _agree(self, what: str) -> None:
        folder = f"{_KEY}/calls/{self._next_request}"
        with self._lock:
            self._client.key_value_set(f"{folder}/{self._process_id}", str(self._calls))
            self._client.wait_at_barrier(folder, _AGREE_MS)
            calls = self._client.key_value_dir_get(f"{folder}/")
            latest = max(int(number) for _, number in calls)
            self._due.setdefault(latest + 1, set()).add(what)
        if self._process_id == 0 and self._next_request:
            # All have read those of the request before.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_delete(f"{_KEY}/calls/{self._next_request - 1}/")
