"""Lists of images: CSV and TSV files with a row `path,label,split` for each."""

import csv
import io
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from simclr_jax.data.sources import storage
from simclr_jax.errors import DataError, StoreFailed, first_line, printable
from simclr_jax.prepare import classes
from simclr_jax.prepare.entries import SUFFIXES as IMAGE_SUFFIXES
from simclr_jax.prepare.entries import Entry

_LOG = logging.getLogger(__name__)
SUFFIXES = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_THREADS = 64
# What columns are called, as `_plain` has it; of several the first is taken.
_NAMES = {
    "path": (
        *("path", "file_path", "filepath", "image_path", "img_path", "filename"),
        *("file_name", "file", "image", "image_name", "img", "image_file", "uri"),
        *("url", "image_filename", "relative_path"),
    ),
    "label": (
        *("label", "class", "target", "category", "class_name", "classname"),
        *("label_name", "labels", "y"),
    ),
    "split": ("split", "subset", "set", "partition", "dataset_split"),
}


class _Row(NamedTuple):
    """A row of a list; `path` is where the file lies."""

    line: int
    given: str
    path: str
    label: str
    split: str


class ListInput:
    """The images that a list names.

    Attributes beside those of `Input`:
      left_out: how many rows say what another one says.
    """

    packed = False

    def __init__(self, path: str) -> None:
        """Reads a list.

        Args:
          path: of the list, local or on a store. Its own paths are absolute, on a
            store, or relative to its folder.

        Raises:
          DataError: a row breaks a rule, which the message names with the line.
        """
        self.name = path
        self.left_out: Counter[str] = Counter()
        rows = self._distinct(_read(path))
        numbers, self.class_names = classes.number([row.label for row in rows])
        with ThreadPoolExecutor(_THREADS) as pool:
            stamps = list(pool.map(lambda row: _stamp(row.path), rows))
        self._entries = [
            Entry(row.given, *stamp, (row.line, row.path), label, row.split or None)
            for row, stamp, label in zip(rows, stamps, numbers, strict=True)
        ]
        splits = sorted({row.split for row in rows if row.split})
        missing = sum(not size for size, _ in stamps)
        _LOG.info(
            "%s: %d images, %d classes, %d without a label%s%s",
            path,
            len(rows),
            len(self.class_names),
            sum(not row.label for row in rows),
            f"; splits {', '.join(splits)}" if splits else "",
            f"; {missing} missing or empty files" if missing else "",
        )

    def entries(self) -> list[Entry]:
        """See `Input`."""
        return self._entries

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        line, path = entry.place
        try:
            return storage.read_file(path)
        except StoreFailed:
            raise
        except (OSError, DataError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise ValueError(f"line {line} of the list: {reason}") from error

    def __getstate__(self) -> dict:
        """For other processes, which have the entries that they read."""
        return {**self.__dict__, "_entries": []}

    def _distinct(self, rows: Iterator[_Row]) -> list[_Row]:
        """The rows without those that repeat another."""
        found: dict[str, _Row] = {}
        for row in rows:
            before = found.setdefault(row.given, row)
            if before is row:
                continue
            if (before.label, before.split) != (row.label, row.split):
                raise _wrong(
                    self.name,
                    row.line,
                    f"{row.given} has the label {row.label!r} and the split "
                    f"{row.split!r}, and in line {before.line} {before.label!r} and "
                    f"{before.split!r}: must be in the list once",
                )
            self.left_out["rows that repeat another"] += 1
        return list(found.values())


def _wrong(path: str, line: int, rule: str) -> DataError:
    return DataError(f"--input: file {path}: line {line}: {printable(rule)}")


def _read(path: str) -> Iterator[_Row]:
    """The rows of a list that hold something, by its header or by position."""
    cells = _cells(path)
    line, first = next(cells, (0, []))
    if not line:
        raise DataError(f"--input: file {path}: holds no row")
    folder = path.rpartition("/")[0]
    columns = _header(path, line, first)
    if columns is None:
        columns = _positions(path, folder, line, first)
        yield _row(path, folder, line, first, columns, len(first))
    for line, row in cells:
        yield _row(path, folder, line, row, columns, len(first))


def _cells(path: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, cells) of the rows with anything in them."""
    text = _text(path)
    delimiter = "\t" if path.lower().endswith(".tsv") else _delimiter(text)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=True,
    )
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _wrong(path, line, f"is no row of a table ({error})") from error
        if row is None:
            return
        row = [cell.strip() for cell in row]
        if any(row):
            yield line, row


def _text(path: str) -> str:
    content = storage.read_file(path)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"  # of spreadsheets' "Unicode text"
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _wrong(path, line, f"must be text in UTF-8 ({error.reason})") from error


def _delimiter(text: str) -> str:
    # Of whole lines: half a last one has fewer cells.
    sample = "\n".join(text[: 1 << 16].splitlines()[:50])
    try:
        return csv.Sniffer().sniff(sample, delimiters=_DELIMITERS).delimiter
    except csv.Error:  # a single column, or rows that differ
        first = sample.partition("\n")[0]
        return max(_DELIMITERS, key=first.count)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def _header(path: str, line: int, row: list[str]) -> dict[str, int] | None:
    """The place of each column that a header names; None if the row is no header.

    Raises:
      DataError: it names no column of paths, or a name twice.
    """
    plain = [_plain(cell) for cell in row]
    columns = {}
    for meaning, names in _NAMES.items():
        found = [name for name in names if name in plain]
        if found:
            if plain.count(found[0]) > 1:
                raise _wrong(path, line, f"column {found[0]}: must be there once")
            columns[meaning] = plain.index(found[0])
    if not columns:
        return None
    if "path" not in columns:
        if row[0].lower().endswith(IMAGE_SUFFIXES):
            return None
        raise _wrong(
            path,
            line,
            f"has the columns {', '.join(row)}: one must be named path, file, "
            "filename or image",
        )
    named = [f"{meaning} from {row[i]!r}" for meaning, i in columns.items()]
    other = [cell for i, cell in enumerate(row) if i not in columns.values()]
    _LOG.info(
        "%s: columns: %s%s",
        path,
        ", ".join(named),
        f"; not used: {', '.join(other)}" if other else "",
    )
    return columns


def _positions(path: str, folder: str, line: int, row: list[str]) -> dict[str, int]:
    """The columns of a list without a header.

    Raises:
      DataError: its first row does not begin with an image, or has more columns.
    """
    is_named_image = row[0].lower().endswith(IMAGE_SUFFIXES)
    if not is_named_image and not _stamp(_located(folder, row[0]))[0]:
        raise _wrong(
            path,
            line,
            f"begins with {row[0][:80]!r}: must be a header with a column named path, "
            "file, filename or image, or a row that begins with the path of an image",
        )
    if len(row) > len(_NAMES):
        raise _wrong(
            path,
            line,
            f"has {len(row)} columns and no header: must be path,label,split, or have "
            "a header that names these",
        )
    columns = dict(zip(_NAMES, range(len(row)), strict=False))
    _LOG.info("%s: has no header; columns, by position: %s", path, ", ".join(columns))
    return columns


def _row(
    path: str, folder: str, line: int, row: list[str], columns: dict, width: int
) -> _Row:
    while len(row) > width and not row[-1]:
        row = row[:-1]
    if not columns["path"] < len(row) <= width:
        raise _wrong(
            path,
            line,
            f"has {len(row)} columns: must have {width}, as the first row; a path with "
            "a delimiter in it needs quotation marks",
        )
    cells = {meaning: row[i] if i < len(row) else "" for meaning, i in columns.items()}
    given = cells["path"]
    if not given:
        raise _wrong(path, line, "has no path")
    located = _located(folder, given)
    split = cells.get("split", "").lower()
    if split and (not split.isidentifier() or split == "all"):
        raise _wrong(
            path,
            line,
            f"has the split {split!r}: must be letters, digits and _, begin with a "
            "letter, and not be 'all'",
        )
    if storage.is_remote(located) and not located.startswith(("gs://", "s3://")):
        raise _wrong(
            path,
            line,
            f"{given}: must be a local path or start with gs:// or s3://",
        )
    return _Row(
        line, _name(folder, given, located), located, cells.get("label", ""), split
    )


def _located(folder: str, given: str) -> str:
    """Where the file of a row lies."""
    given = given.removeprefix("file://")
    if storage.is_remote(given):
        return given
    given = os.path.expanduser(given)
    if not os.path.isabs(given) and folder:
        given = f"{folder}/{given}"
    if storage.is_remote(given) or "\\" not in given or os.path.lexists(given):
        return given
    return given.replace("\\", "/")  # written on Windows


def _name(folder: str, given: str, located: str) -> str:
    """The file's name in the dataset: relative to the list's folder if it is below."""
    if storage.is_remote(located):
        return located.removeprefix(f"{folder}/")
    located = posixpath.normpath(located)
    return located.removeprefix(f"{posixpath.normpath(folder)}/") if folder else located


def _stamp(path: str) -> tuple[int, int]:
    """(bytes, time of the last change in ns) of a file; zeros if it is not there."""
    if storage.is_remote(path):
        try:
            return storage.file_size(path) or 0, 0
        except PermissionError:
            return 0, 0
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
