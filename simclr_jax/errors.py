"""Errors the user can fix; commands print them as one line."""

import re

# Names of devices, operations and nodes in TensorFlow's messages, and bytes.
_INTERNALS = re.compile(
    r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:\w+\]( name:)?"
    r"|Error in user-defined function passed to .*? with iterator: [\w:]+: "
    r"|, value: '.*"  # the bytes of a record
)


class InvalidInput(ValueError):
    """A config, flag, dataset or folder that cannot be used; names it and the rule."""


class ConfigError(InvalidInput):
    """A config or flag that cannot be run."""


class DataError(InvalidInput):
    """A dataset, folder or file that cannot be used."""


class NotPrepared(DataError):
    """A dataset that TensorFlow Datasets has not prepared in its data folder."""


class BadRecord(DataError):
    """A record of a dataset that cannot be read as an image.

    Attributes:
      index: its number in the dataset.
      name: of the record.
      reason: what is wrong with it.
    """

    def __init__(self, index: int, name: str, reason: str, hint: str = "") -> None:
        """Takes what the message says; `hint` is what to do about it."""
        super().__init__(f"{name}: {reason}{hint}")
        self.index, self.name, self.reason = index, name, reason


class StoreFailed(DataError):
    """A file that a disk or store did not return; it may be intact."""


class CheckpointNotFound(InvalidInput, FileNotFoundError):
    """A folder that lacks the requested checkpoint."""


class RunOwned(InvalidInput):
    """A run directory that another process is writing."""


class RunFailed(RuntimeError):
    """A run that cannot continue, although its input is valid."""


class StartFailed(RunFailed):
    """The processes of a job did not all start, or do not match."""


class RunStopped(RunFailed):
    """A run that was asked to stop before its last step; it can be resumed."""


class TrainingDiverged(RunFailed):
    """A loss, gradient or update that is no longer finite."""


class CheckpointError(RunFailed):
    """A checkpoint that cannot be read."""


class CheckpointDamaged(CheckpointError):
    """A checkpoint whose files are not what was saved."""


class EncoderChanged(RunFailed):
    """An evaluation that changed the encoder it measures."""


class ExportFailed(RunFailed):
    """An exported encoder whose features differ from the original's."""


def printable(text: str) -> str:
    r"""A text in one line, without what a terminal would obey: '\n' for a line's end.

    Names of files, classes and tensors can hold control characters, such as those that
    move a terminal's cursor, and marks that turn the direction of a line.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def printable_lines(text: str) -> str:
    """`printable` for each line of a text."""
    return "\n".join(map(printable, text.split("\n")))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters, or its type.

    Without the internals of TensorFlow's messages.
    """
    lines = _INTERNALS.sub("", str(error)).strip().splitlines()
    return lines[0][:300].strip() if lines else type(error).__name__
