"""What is wrong with a checkpoint that cannot be read: damage, or something else."""

import contextlib
import errno
import logging
from collections.abc import Iterator

import jax
from etils import epath

from simclr_jax.errors import CheckpointDamaged, CheckpointError, first_line
from simclr_jax.models.simclr import Tree
from simclr_jax.runs import checksums

_LOG = logging.getLogger(__name__)


def described(path: epath.Path, reason: str) -> str:
    """The message about a damaged checkpoint."""
    return f"checkpoint {path}: is damaged ({reason})"


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
        reason = f"the array {wrong[0]}{more} is not what was saved: checksum"
        raise CheckpointDamaged(described(folder, reason))


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


@contextlib.contextmanager
def reading(folder: epath.Path, item: str, changed: bool = False) -> Iterator[None]:
    """Turns what Orbax raises into errors that say what to do.

    Args:
      folder: of the checkpoint.
      item: that is read.
      changed: whether it was saved under another config, whose shapes may differ.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:
        _LOG.debug("reading %s", folder, exc_info=error)
        reason = f"item {item}: {_innermost(error)}"
        unreachable = getattr(error, "errno", None) in _UNREACHABLE or any(
            code in str(error) for code in _UNREACHABLE_CODES
        )
        if unreachable:
            raise CheckpointError(
                f"checkpoint {folder}: cannot be read now ({reason})"
            ) from error
        if changed:
            raise CheckpointError(
                f"checkpoint {folder}: was saved under another config and does not fit "
                f"this one ({reason}); take that config, or another workdir"
            ) from error
        raise CheckpointDamaged(described(folder, reason)) from error


def _innermost(error: BaseException) -> str:
    """The first line of the error that others only wrap."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
