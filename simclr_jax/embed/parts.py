"""Features that are kept until all are there: a kill costs one part.

    OUTPUT.parts/index.json          of which images, encoder and version the parts are
                 part-<number>.npz   features, index, labels; the broken images

Process 0 reads and writes them. A part appears as a whole or not at all.
"""

import contextlib
import dataclasses
import io
import json
import logging
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import paths
from simclr_jax.errors import ConfigError, DataError, first_line
from simclr_jax.runs import atomic

_LOG = logging.getLogger(__name__)
SUFFIX = ".parts"
_INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of a part of the dataset.

    Attributes:
      features: float32 [n, D], of the images that could be read.
      index: int64 [n], their numbers in the dataset, ascending.
      labels: int32 [n]; -1 where there is none.
      broken: why others could not be read, by number in the dataset.
    """

    features: np.ndarray
    index: np.ndarray
    labels: np.ndarray
    broken: dict[int, str]


class Parts:
    """The folder of the parts of one output."""

    def __init__(self, output: str) -> None:
        """Describes the folder; nothing is read or written."""
        self.folder = paths.as_path(output + SUFFIX)

    def open(self, what: dict[str, Any]) -> None:
        """Makes the folder one of `what`: parts of anything else are deleted.

        Args:
          what: all that features depend on, as JSON values.

        Raises:
          ConfigError: it cannot be written, or holds something else than parts.
        """
        index = self.folder / _INDEX
        with atomic.one_line(f"folder {self.folder}: cannot be used"):
            found = _read_json(index)
            if found == what:
                return
            if found is not None:
                differing = sorted(
                    key for key in {*found, *what} if found.get(key) != what.get(key)
                )
                _LOG.warning(
                    "The parts in %s differ in %s, and are not used.",
                    self.folder,
                    ", ".join(differing),
                )
                self.delete()
            elif self.folder.exists() and any(self.folder.iterdir()):
                raise ConfigError(
                    f"folder {self.folder}: must be free, for parts of the output, and "
                    f"holds other files or a damaged {_INDEX}; delete it"
                )
        atomic.write_file(index, json.dumps(what, indent=1) + "\n")

    def exists(self) -> bool:
        """Whether an earlier command left the folder."""
        with atomic.one_line(f"folder {self.folder}: cannot be read"):
            return (self.folder / _INDEX).exists()

    def has(self, number: int) -> bool:
        """Whether a part is there, and its small arrays can be read."""
        path = self._path(number)
        with atomic.one_line(f"file {path}: cannot be read"):
            if not path.exists():
                return False
            try:
                with path.open("rb") as file, np.load(file) as arrays:
                    return len(arrays["index"]) == len(arrays["labels"])
            except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
                _LOG.warning("%s is damaged; its images are encoded again.", path)
                return False

    def write(self, number: int, part: Part) -> None:
        """Keeps a part.

        Raises:
          ConfigError: it cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(
            buffer,
            features=part.features,
            index=part.index,
            labels=part.labels,
            broken=np.array([*part.broken], np.int64),
            reasons=np.array([*part.broken.values()], "U"),
        )
        path = self._path(number)
        with atomic.one_line(f"file {path}: cannot be written"):
            if paths.is_store(path):  # an object appears when all of it was sent
                path.write_bytes(buffer.getbuffer())
                return
            unfinished = path.with_suffix(".tmp")
            unfinished.write_bytes(buffer.getbuffer())
            unfinished.replace(path)

    def read(self, number: int) -> Part:
        """A part, whose checksums are compared.

        Raises:
          ConfigError: its disk or store fails.
          DataError: it is damaged.
        """
        path = self._path(number)
        with atomic.one_line(f"file {path}: cannot be read"):
            try:
                with np.load(io.BytesIO(path.read_bytes())) as arrays:
                    names = ("features", "index", "labels", "broken", "reasons")
                    values = [arrays[name] for name in names]
            except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
                raise DataError(
                    f"file {path}: is damaged ({first_line(error)}); delete it and "
                    "run the command again"
                ) from error
        features, index, labels, numbers, reasons = values
        broken = dict(zip(numbers.tolist(), reasons.tolist(), strict=True))
        return Part(features, index, labels, broken)

    def read_all(self, count: int) -> Iterator[Part]:
        """The parts 0, 1, ..., count - 1; one is held at a time."""
        return map(self.read, range(count))

    def delete(self) -> None:
        """Deletes the folder; a file that resists stays."""
        with contextlib.suppress(FileNotFoundError):
            # Without its index it is no folder of parts, whatever is left.
            (self.folder / _INDEX).unlink(missing_ok=True)
            self.folder.rmtree(missing_ok=True)

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"part-{number:06d}.npz"


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None
