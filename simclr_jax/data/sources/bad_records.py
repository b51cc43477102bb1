"""Records that are no images: which errors say so, and what a reader does then.

A record is bad if it is gone, or its bytes cannot be read as an image. Where a disk or
store fails, permission is missing, or this machine runs out of memory or of open files,
the record may be intact: nothing may take its place.
"""

import errno
import re
from collections.abc import Callable
from typing import Any, NoReturn

from simclr_jax.data.sources.base import Source
from simclr_jax.errors import BadRecord, DataError, StoreFailed, first_line

# Called with a record that is bad and the step that needs it, from 1; 0 where images
# are decoded before the first step. Returns if another image may take its place.
OnBadRecord = Callable[[BadRecord, int], Any]

# What decoders say of files without their end, each in its own words.
_CUT_SHORT = re.compile(
    r"^jpeg::Uncompress failed|^Invalid (JPEG|PNG) data|^(Pillow: )?(image file is "
    r"truncated|broken (PNG|data stream)|Truncated File Read|unrecognized data stream)"
)
_HINT = "; `python -m simclr_jax.prepare` finds and leaves out such files"
_OF_THIS_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class BatchFailed(DataError):
    """A batch that could not be made; nothing says yet which record is at fault."""


def batch_failed(source: Source, error: Exception) -> BatchFailed:
    """The error to raise where no record of a batch is known to be at fault."""
    return BatchFailed(f"{source.name}: reading a batch failed ({first_line(error)})")


def stop(error: BadRecord, step: int) -> None:
    """An `OnBadRecord` that lets no other image take the place.

    Raises:
      DataError: always; with the step, and how to go on.
    """
    needed = f"step {step} needs it" if step else "it is needed before the first step"
    raise DataError(
        f"{error.name}: {error.reason}; {needed}. A training with "
        "config.data.on_bad_record='replace' takes the next image in its place; "
        "`python -m simclr_jax.prepare` leaves such files out"
    ) from error


def refuse(error: BadRecord, _step: int) -> None:
    """An `OnBadRecord` for images that are not trained on: raises the error."""
    raise error


def of(source: Source) -> tuple[BadRecord, ...]:
    """The records of a source that were found to be bad before the first step."""
    return getattr(source, "bad_records", ())


def fail(index: int, name: str, what: str, error: Exception) -> NoReturn:
    """Raises the error of a record that could not be read or decoded.

    Args:
      index: of the record.
      name: of the record.
      what: happened, such as 'cannot be decoded'.
      error: of the reader or decoder, which raise anything on damaged data.

    Raises:
      BadRecord: it is bad.
      DataError: it may be intact.
    """
    if isinstance(error, BadRecord | StoreFailed):
        raise error
    cause = first_line(error).removeprefix(f"{name}: ")
    if _CUT_SHORT.search(cause):
        cause = "the file is cut short or damaged"
    intact = isinstance(error, MemoryError | PermissionError)
    if isinstance(error, OSError):
        cause = error.strerror or cause  # without the path, which the name has
        intact |= error.errno in _OF_THIS_MACHINE
    if intact:
        raise DataError(f"{name}: {what} ({cause})") from error
    # Of a folder; others are prepared, or were prepared by others.
    hint = _HINT if name.startswith("file ") else ""
    raise BadRecord(index, name, f"{what} ({cause})", hint) from error
