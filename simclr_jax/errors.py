"""Errors that are the user's to mend; commands print them as one line."""


class InvalidInput(ValueError):
    """A config, flag, dataset or folder that cannot be used; names it and the rule."""


class ConfigError(InvalidInput):
    """A config or flag that cannot be run."""


class DataError(InvalidInput):
    """A dataset, folder or file that cannot be used."""


class NotPrepared(DataError):
    """A dataset of which TensorFlow Datasets has no prepared copy here."""


class StoreFailed(DataError):
    """A file that a disk or store did not deliver in many tries; it may be intact."""


class CheckpointNotFound(InvalidInput, FileNotFoundError):
    """A folder without the checkpoint asked for."""


class RunFailed(RuntimeError):
    """A run that cannot go on through no fault of its input."""


class StartFailed(RunFailed):
    """The processes of a job did not come together."""


class RunStopped(RunFailed):
    """A run that was asked to end before its last step; it can be gone on with."""


class TrainingDiverged(RunFailed):
    """A loss, gradient or update is not finite any more."""


class CheckpointError(RunFailed):
    """A checkpoint that cannot be read."""


class EncoderChanged(RunFailed):
    """An evaluation altered the encoder that it was to measure."""


class ExportFailed(RunFailed):
    """An exported encoder gives other features than the original."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line of at most 300 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
