"""The dataset that a run began with: another one under the same name is no resume."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from simclr_jax import paths
from simclr_jax.data.sources import listings
from simclr_jax.data.sources.base import Source
from simclr_jax.data.sources.listings import Listing
from simclr_jax.errors import ConfigError
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic

_LOG = logging.getLogger(__name__)
FILE_NAME = "dataset.json"
_TEACHER_CLASSES = "teacher_class_names"


def check(workdir: str, source: Source, allow_data_change: bool) -> Listing:
    """Checks that a run directory is free, or that its run began with this dataset.

    Runs of earlier versions have no record, and take the dataset that they find.

    Args:
      workdir: the run directory; need not be there.
      source: the training images.
      allow_data_change: resume with another dataset.

    Returns:
      The listing of the dataset, for `write`.

    Raises:
      ConfigError: the dataset is another one, or the record is damaged.
    """
    listing = source.listing()
    recorded = read(workdir)
    changes = listings.differences(recorded, listing) if recorded else []
    if not changes:
        return listing
    if not allow_data_change:
        raise ConfigError(
            f"--workdir={workdir}: its run began with other images than {source.name} "
            f"has ({'; '.join(changes)}); bring them back, use a new workdir, or "
            "--allow_data_change to resume with these"
        )
    _LOG.warning("The dataset has changed (%s); batches differ.", "; ".join(changes))
    return listing


def write(
    workdir: str, listing: Listing, teacher_classes: Sequence[str] | None = None
) -> None:
    """Records the dataset of a run, atomically; process 0 does.

    Args:
      workdir: the run directory.
      listing: of the training images.
      teacher_classes: the names of the classes that a student learns from its teacher.

    Raises:
      ConfigError: the directory cannot be written.
    """
    if not processes.is_main() or holds(workdir, listing):
        return
    content = {"fingerprint": listing.fingerprint, **listing.as_json()}
    if teacher_classes is not None:
        content[_TEACHER_CLASSES] = list(teacher_classes)
    text = json.dumps(content, indent=1)
    atomic.write_file(paths.as_path(workdir) / FILE_NAME, text + "\n")


def holds(workdir: str, listing: Listing) -> bool:
    """Whether a run has recorded this dataset."""
    recorded = read(workdir)
    return recorded is not None and recorded.fingerprint == listing.fingerprint


def read(workdir: str) -> Listing | None:
    """The dataset of a run; None where it is not recorded.

    Raises:
      ConfigError: the record is damaged.
    """
    found = _read(workdir)
    return found[0] if found else None


def class_names(workdir: str) -> list[str] | None:
    """The names of a run's classes; None where they are not recorded.

    Those of the teacher of a distillation, or else of the dataset.

    Raises:
      ConfigError: the record is damaged.
    """
    found = _read(workdir)
    if found is None:
        return None
    listing, content = found
    names = content.get(_TEACHER_CLASSES, listing.class_names)
    return [str(name) for name in names] if isinstance(names, list) else None


def _read(workdir: str) -> tuple[Listing, dict[str, Any]] | None:
    """(the dataset, the whole object in the file)."""
    path = paths.as_path(workdir) / FILE_NAME
    with atomic.one_line(f"file {path}: cannot be read"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return listings.from_json(content), content
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"file {path}: is damaged ({error}); remove it, and the run records "
                "the dataset that it finds"
            ) from error
