"""SIGTERM and SIGINT, heard at once whatever the main thread does.

Python runs signal handlers between two bytecodes of the main thread. A program that
compiles, or waits inside a library, would hear of a signal minutes later. Here Python's
C handler writes the number of the signal into a pipe, and a thread reads it and acts.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from signal import SIGINT, SIGTERM
from typing import Any, NoReturn

# As in a shell: 128 plus the number of the signal.
EXIT_CODES = {SIGTERM: 143, SIGINT: 130}
# Time for the last words to other processes and for cleaning up.
_ENDING_SECS = 5.0

_received: signal.Signals | None = None
_on_first: Callable[[signal.Signals], None] | None = None
_before_ending: list[Callable[[str], None]] = []


def received() -> signal.Signals | None:
    """The first signal that was heard while listening."""
    return _received


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """A context in which SIGTERM and SIGINT end the process at once, with a line.

    `on_first` changes what the first of them does. For the main thread of a command;
    a notebook that runs a training keeps its own Ctrl-C.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_hear, args=(reader,), daemon=True, name="signals")
    thread.start()
    former_pipe = signal.set_wakeup_fd(writer)
    former = {number: signal.signal(number, _written) for number in EXIT_CODES}
    for number in EXIT_CODES:
        # Calls of libraries that wait go on after the signal.
        signal.siginterrupt(number, False)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_pipe)
        os.close(writer)
        thread.join()
        os.close(reader)


def _written(_number: int, _frame: object) -> None:
    """The handler: by now the pipe has the number."""


@contextlib.contextmanager
def on_first(act: Callable[[signal.Signals], None]) -> Iterator[None]:
    """A context in which the first signal calls a function; a second one ends.

    Args:
      act: called in a thread with the signal.
    """
    global _on_first
    _on_first = act
    try:
        yield
    finally:
        _on_first = None


def call_before_ending(act: Callable[[str], None]) -> None:
    """From now on, a function is called before a signal ends the process.

    Args:
      act: called in a thread with the reason, such as 'ended by SIGTERM'. The process
        waits at most 5 seconds for all such functions.
    """
    _before_ending.append(act)


@contextlib.contextmanager
def before_ending(act: Callable[[str], None]) -> Iterator[None]:
    """A context in which a function is called before a signal ends the process."""
    call_before_ending(act)
    try:
        yield
    finally:
        _before_ending.remove(act)


def end(reason: str, code: int) -> NoReturn:
    """Ends the process at once, with a line on stderr."""
    _in_thread(_last_words, reason).join(_ENDING_SECS)
    os._exit(code)


def _in_thread(act: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Calls a function that may hang: stderr can be a pipe that nobody reads."""
    thread = threading.Thread(target=act, args=arguments, daemon=True)
    thread.start()
    return thread


def _last_words(reason: str) -> None:
    # Past Python's buffer, whose lock another thread may hold.
    os.write(2, f"error: {reason}\n".encode())
    for act in list(_before_ending):
        # Nothing may keep the process from ending.
        with contextlib.suppress(Exception):
            act(reason)


def _hear(reader: int) -> None:
    """Reads signals from the pipe until it is closed."""
    global _received, _on_first
    while numbers := os.read(reader, 16):
        for number in numbers:
            if number not in EXIT_CODES:
                continue
            heard = signal.Signals(number)
            act, _on_first = _on_first, None
            again = _received is not None
            _received = _received or heard
            if act is not None:
                _in_thread(act, heard)
                continue
            words = "interrupted" if heard == SIGINT else f"ended by {heard.name}"
            if again:
                words = f"{words}, the second signal, without waiting"
            end(words, EXIT_CODES[heard])
