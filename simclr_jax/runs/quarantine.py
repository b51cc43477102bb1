"""The images of a run that went bad: `quarantine.tsv` of its directory.

Process 0 writes the file, as a whole, when a step is logged and when a checkpoint is
saved. What other processes find reaches it through `parallel.postings`. The file only
saves time and informs: which images replace which does not depend on it, see
`data/replacing.py`.
"""

import contextlib
import logging
import math
import re
import threading
from collections.abc import Callable, Sequence

from etils import epath

from simclr_jax import paths
from simclr_jax.errors import BadRecord, DataError, InvalidInput, first_line
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic

_LOG = logging.getLogger(__name__)

FILE_NAME = "quarantine.tsv"
_COLUMNS = ("record", "reason", "step", "index")
# Bad images that datasets may have whatever their size, down to a tenth of them.
_HANDFUL = 5
_MOST_WARNINGS = 20
_NAMES_IN_ERROR = 3


def most_allowed(num_examples: int, max_share: float) -> int:
    """How many bad images a dataset may have.

    Args:
      num_examples: images in the dataset.
      max_share: of them; any share above 0 allows 5 images, or a tenth of fewer than
        50.
    """
    if max_share == 0:
        return 0
    share = math.floor(max_share * num_examples + 1e-6)
    return max(share, min(_HANDFUL, num_examples // 10))


def too_many(
    dataset: str,
    bad: Sequence[tuple[str, ...]],
    *,
    num_examples: int,
    max_share: float,
    path: epath.Path | None = None,
) -> DataError:
    """The error to raise where too many images are bad.

    Args:
      dataset: its name.
      bad: (name, reason) of each.
      num_examples: images in the dataset.
      max_share: as in `most_allowed`.
      path: of the list, if there is one.
    """
    first, *others = bad
    names = [": ".join(first), *(name for name, _ in others[: _NAMES_IN_ERROR - 1])]
    more = ", ..." if len(bad) > len(names) else ""
    is_damaged = any("cut short or damaged" in ": ".join(words) for words in bad)
    hint = " `python -m simclr_jax.prepare` leaves such files out." * is_damaged
    listed = f" {path} lists them; remove it after repairs" if path else ""
    return DataError(
        f"{dataset}: {len(bad)} of {num_examples} images cannot be read "
        f"({', '.join(names)}{more}); config.data.bad_records_max={max_share:g} allows "
        f"{most_allowed(num_examples, max_share)}.{hint}{listed}"
    )


class Quarantine(contextlib.AbstractContextManager):
    """The bad records of a dataset that a run has met."""

    def __init__(
        self,
        workdir: str | None,
        *,
        dataset: str,
        describe: Callable[[int], str],
        num_examples: int,
        max_share: float,
    ) -> None:
        """Reads the list of an earlier start.

        Args:
          workdir: the run directory; None keeps no list.
          dataset: its name.
          describe: names a record.
          num_examples: images in the dataset.
          max_share: `data.bad_records_max`.
        """
        self._path = None if workdir is None else paths.as_path(workdir) / FILE_NAME
        self._dataset, self._num_examples = dataset, num_examples
        self._max_share = max_share
        self._limit = most_allowed(num_examples, max_share)
        self._is_main = processes.is_main()
        self._postings = processes.postings("quarantine")
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._lines = self._read()
        # By the names of records of this dataset, in the order in which they went bad.
        self._names: dict[str, str] = {}
        for line in self._lines:
            index = _index(line)
            if index is not None and index < num_examples:
                name = escaped(describe(index))
                if line.startswith(f"{name}\t"):
                    self._names[name] = line
        self._num_warnings = 0
        self._is_written, self._is_failing = True, False

    @property
    def known(self) -> frozenset[int]:
        """The numbers of the records."""
        with self._lock:
            return frozenset(_index(line) or 0 for line in self._names.values())

    def add(self, error: BadRecord, step: int) -> None:
        """Lists a bad record, once; an `OnBadRecord`, called from any thread.

        Raises:
          DataError: there are more than the limit.
        """
        cells = error.name, error.reason, str(step), str(error.index)
        line = "\t".join(map(escaped, cells))
        # Before the first step all processes find the same.
        is_mine = self._is_main or step > 0
        if self._list(line) and is_mine:
            if len(self._names) <= self._limit:  # else the run ends with an error
                self._warn(error)
            self._postings.post(line)
        self._check()

    def collect(self) -> int:
        """Brings the file up to date; returns how many bad records there are.

        Only process 0 does, and knows of those of the other processes.

        Raises:
          DataError: there are more than the limit.
        """
        for line in self._postings.collect():
            self._list(line)
        if self._is_main:
            self._write()
        self._check()
        return len(self._names)

    def __exit__(self, *_: object) -> None:
        """Brings the file up to date for the last time."""
        with contextlib.suppress(DataError):  # another error is under way, or the end
            self.collect()

    def _list(self, line: str) -> bool:
        """Whether a line is new."""
        name = line.partition("\t")[0]
        with self._lock:
            if name in self._names:
                return False
            self._names[name] = line
            self._lines.append(line)
            self._is_written = False
        return True

    def _check(self) -> None:
        count = len(self._names)
        if count <= self._limit:
            return
        self._write()
        raise too_many(
            self._dataset,
            [tuple(line.split("\t")[:2]) for line in self._names.values()],
            num_examples=self._num_examples,
            max_share=self._max_share,
            path=self._path,
        )

    def _warn(self, error: BadRecord) -> None:
        self._num_warnings += 1
        if self._num_warnings <= _MOST_WARNINGS:
            _LOG.warning("%s; the next good image takes its place", escaped(str(error)))
        if self._num_warnings == _MOST_WARNINGS:
            _LOG.warning("Further ones are listed in %s only.", FILE_NAME)

    def _read(self) -> list[str]:
        if self._path is None:
            return []
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except Exception as error:  # of the disk or of a store's library
            if not paths.is_failure(error):
                raise
            _LOG.warning(
                "file %s: cannot be read (%s), so that the bad images are searched for "
                "again.",
                self._path,
                first_line(error),
            )
            return []
        header, *lines = content.decode(errors="replace").split("\n")
        del header
        return [line for line in lines if line.strip("\0 \r\t")]

    def _write(self) -> None:
        if self._path is None or self._is_written:
            return
        with self._writing:
            with self._lock:
                self._is_written = True
                lines = [*self._lines]
            if not self._is_main:  # the run ends, and 0 may not know of all of them
                lines = [*dict.fromkeys(self._read() + lines)]
            try:
                text = "\n".join(["\t".join(_COLUMNS), *lines, ""])
                atomic.write_file(self._path, text)
                self._is_failing = False
            except InvalidInput as error:
                if not self._is_failing:
                    _LOG.warning("%s; retries when the next step is logged.", error)
                self._is_written, self._is_failing = False, True


def _index(line: str) -> int | None:
    """The number of a record; None if the line is damaged."""
    cells = line.split("\t")
    if len(cells) != len(_COLUMNS) or not cells[-1].strip().isdecimal():
        return None
    return int(cells[-1])


_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def escaped(text: str) -> str:
    r"""A cell of one line: \t, \n, \r, \\, \xNN for others that are not printed."""
    text = re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\]",
        lambda match: _SHORT.get(match[0]) or f"\\x{ord(match[0]):02x}",
        text,
    )
    # Bytes of file names that are no text.
    return text.encode(errors="backslashreplace").decode()
