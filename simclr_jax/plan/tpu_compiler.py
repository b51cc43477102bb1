"""Runs the TPU compiler, shows progress, and remembers refusals."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from simclr_jax.errors import RunFailed, first_line

Report = Callable[[str], None]

_EVERY_SECONDS = 20.0
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_VERDICTS = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE),
)


class DoesNotFit(Exception):
    """The compiler's verdict that a program needs more than a device's memory."""

    def __init__(
        self, words: str, needed: float | None = None, available: float | None = None
    ) -> None:
        """Keeps the verdict.

        Args:
          words: what the compiler said.
          needed: bytes, where it says so.
          available: bytes of HBM that it can use, where it says so.
        """
        super().__init__(words)
        self.words = words
        self.needed = needed
        self.available = available


def compile_program(
    lowered: jax.stages.Lowered, label: str, report: Report
) -> jax.stages.Compiled:
    """Compiles, with a line of progress every 20 seconds.

    Args:
      lowered: the program.
      label: what is compiled for what, for those lines.
      report: takes each line.

    Raises:
      DoesNotFit: it needs more memory than a device has.
      RunFailed: the compiler gave up for another reason.
    """
    try:
        with _progress(label, report):
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        verdict = read_verdict(str(error))
        if verdict is not None:
            raise verdict from error
        raise RunFailed(f"{label}: {first_line(error)}") from error


def read_verdict(message: str) -> DoesNotFit | None:
    """What an error of the compiler says about memory; None if it is another one."""
    if "RESOURCE_EXHAUSTED" not in message or "hbm" not in message.lower():
        return None
    words = message.strip().splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    for pattern in _VERDICTS:
        if match := pattern.search(message):
            needed = float(match[1]) * _UNITS[match[2]]
            available = float(match[3]) * _UNITS[match[4]]
            return DoesNotFit(words, needed, available)
    return DoesNotFit(words)


def available_memory(device: jax.Device) -> float:
    """Bytes of HBM that programs can use, less than the chip has.

    The compiler tells it only when refusing a program, so it gets one to refuse.
    """
    sharding = jax.sharding.SingleDeviceSharding(device)
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32)
    program = jax.jit(
        lambda x: x + 1, in_shardings=sharding, out_shardings=sharding
    ).lower(huge)
    try:
        compile_program(program, f"memory of {device.device_kind}", lambda line: None)
    except DoesNotFit as verdict:
        if verdict.available is not None:
            return verdict.available
    raise RunFailed(
        f"the compiler does not report the memory of a {device.device_kind}"
    )


@contextlib.contextmanager
def _progress(label: str, report: Report) -> Iterator[None]:
    start, done = time.monotonic(), threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY_SECONDS):
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            report(f"{label} ... {minutes}:{seconds:02d}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
