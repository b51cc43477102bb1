"""What is wrong with a checkpoint that cannot be read: damage, or something else."""

import errno
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from etils import epath

from simclr_jax.errors import CheckpointDamaged, CheckpointError, first_line
from simclr_jax.models.simclr import Tree
from simclr_jax.runs import checksums

_LOG = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def damaged(path: epath.Path, why: str) -> CheckpointDamaged:
    """The error to raise for a damaged checkpoint."""
    return CheckpointDamaged(f"checkpoint {path}: is damaged ({why})")


def compare(folder: epath.Path, tree: Tree, expected: dict[str, str]) -> None:
    """Compares what was read with the checksums of what was saved.

    Checkpoints of earlier versions have none.

    Raises:
      CheckpointDamaged: they differ.
    """
    if not expected:
        return
    wrong = [
        name
        for name, value in checksums.of_tree(tree).items()
        if expected.get(name) != value
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        why = f"the array {wrong[0]}{more} is not what was saved: checksum"
        raise damaged(folder, why)


# What a disk or store says that may be intact and cannot be read now.
_UNREACHABLE = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNREFUSED),
    }
)
# The same in TensorStore's words.
_UNREACHABLE_CODES = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
)

_LEFTOVERS = (
    "_read_array_index_and_device_put",
    "was never awaited",
    "Event loop is closed",
)


def read(
    folder: epath.Path,
    item: str,
    function: Callable[[], _Result],
    *,
    changed: bool = False,
) -> _Result:
    """What a function reads with Orbax, whose errors become ones that say what to do.

    Args:
      folder: of the checkpoint.
      item: that is read.
      function: reads it.
      changed: whether it was saved under another config, whose shapes may differ.

    Raises:
      CheckpointDamaged: it is not what was saved.
      CheckpointError: it cannot be reached, or belongs to the other config.
    """
    _ignore_leftovers()
    try:
        return function()
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:
        _LOG.debug("reading %s", folder, exc_info=error)
        raise _problem(error, folder, item, changed) from error


@functools.cache
def _ignore_leftovers() -> None:
    """Says nothing of the reads that Orbax gave up when another one failed.

    Python would: each coroutine that never starts is a warning, and each answer that
    comes too late a traceback, at any time from now on.
    """
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        said = f"{unraisable.exc_value} {unraisable.object!r}"
        if not any(words in said for words in _LEFTOVERS):
            report(unraisable)

    sys.unraisablehook = report_others


def _problem(
    error: Exception, folder: epath.Path, item: str, changed: bool
) -> CheckpointError:
    why = f"item {item}: {reason(error, folder)}"
    unreachable = getattr(error, "errno", None) in _UNREACHABLE or any(
        code in str(error) for code in _UNREACHABLE_CODES
    )
    if unreachable:
        return CheckpointError(f"checkpoint {folder}: cannot be read now ({why})")
    if changed:
        return CheckpointError(
            f"checkpoint {folder}: was saved under another config and does not fit "
            f"this one ({why}); take that config, or another workdir"
        )
    return damaged(folder, why)


def reason(error: BaseException, folder: epath.Path) -> str:
    """What the error that others only wrap says of a file, without TensorStore's plan.

    Args:
      error: that Orbax raised.
      folder: names of files in it are relative to it.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    said = re.split(r" \[\w+(?:\[\d+\])?=", str(error))[0]
    # Error reading "ARRAY" in OCDBT database at local file "FILE": ...: REASON
    files = [name for name in re.findall(r'"([^"]+)"', said) if "/" in name[:6]]
    if files:
        said = f"file {files[-1]}: {said.rpartition(chr(34))[2].lstrip(': ')}"
    return first_line(ValueError(said)).replace(f"{os.fspath(folder)}/", "")
