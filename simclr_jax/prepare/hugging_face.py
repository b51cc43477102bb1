"""Images in datasets of Hugging Face: folders of `save_to_disk`, and parquet files."""

import bisect
import functools
import itertools
import json
import os
import re
from collections.abc import Callable
from typing import Any

from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.errors import DataError, first_line
from simclr_jax.prepare.entries import Entry

_SHARD = re.compile(r"(\w+)-\d+-of-\d+(-\w+)?\.parquet$")


def is_saved_dataset(folder: str) -> bool:
    """Whether a folder is what `save_to_disk` writes."""
    return any(
        os.path.exists(os.path.join(folder, name))
        for name in ("state.json", "dataset_dict.json")
    )


class TableInput:
    """Rows of Arrow or parquet files with a column of images."""

    def __init__(self, root: str, files: list[tuple[str, str | None]]) -> None:
        """Reads what the columns are.

        Args:
          root: the folder that `files` are relative to.
          files: paths and, where known, the splits that they belong to.

        Raises:
          DataError: pyarrow is not installed, or a file has no column of images.
        """
        self.name = root
        self._root = root
        self._files = files
        _import_pyarrow(root)
        schema = _open_table(os.path.join(root, files[0][0])).schema
        features = _declared(root, schema)
        image = _image_column(schema, features)
        if image is None:
            raise DataError(
                f"--input: {root}: no column of {', '.join(schema.names)} holds images"
            )
        self._image = image
        self._label, names = _label_column(schema, features)
        self.class_names: list[str] = names

    def entries(self) -> list[Entry]:
        """See `Input`."""
        found = []
        for path, split in self._files:
            table = _open_table(os.path.join(self._root, path))
            labels = table.labels(self._label)
            time = os.stat(os.path.join(self._root, path)).st_mtime_ns
            for row in range(table.num_rows):
                label = NO_LABEL
                if labels is not None and labels[row] is not None:
                    label = int(labels[row])
                name = f"{path}/{row:08d}"
                found.append(Entry(name, 0, time, (path, row), label, split))
        highest = max((entry.label for entry in found), default=NO_LABEL)
        if self._label and not self.class_names:
            # Numbers without names.
            self.class_names = [str(number) for number in range(highest + 1)]
        lowest = min((entry.label for entry in found), default=NO_LABEL)
        if highest >= len(self.class_names) or lowest < NO_LABEL:
            raise DataError(
                f"--input: {self.name}: column {self._label} holds labels from "
                f"{lowest} to {highest}, must be below {len(self.class_names)}"
            )
        return found

    def read(self, entry: Entry) -> bytes:
        """See `Input`."""
        path, row = entry.place
        value = _open_table(os.path.join(self._root, path)).value(self._image, row)
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise ValueError("the row holds no bytes of an image")
        return bytes(value)


class _Table:
    """An Arrow file (mapped) or a parquet file (one group of rows at a time)."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        self._groups: Any = None
        try:
            if path.endswith(".parquet"):
                self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
                self.schema = self._file.schema_arrow
                groups = range(self._file.metadata.num_row_groups)
                counts = [self._file.metadata.row_group(g).num_rows for g in groups]
                self._starts = [0, *itertools.accumulate(counts)]
                self.num_rows = self._starts[-1]
            else:
                mapped = pa.memory_map(path)
                try:
                    self._file = pa.ipc.open_stream(mapped).read_all()
                except pa.ArrowInvalid:
                    mapped.seek(0)
                    self._file = pa.ipc.open_file(mapped).read_all()
                self.schema = self._file.schema
                self._starts = [0, self._file.num_rows]
                self.num_rows = self._file.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"--input: file {path}: is no whole table ({first_line(error)})"
            ) from error
        self._is_parquet = path.endswith(".parquet")
        self._group: tuple[int, Any] = (-1, None)

    def labels(self, column: str | None) -> list | None:
        """All of one column."""
        if column is None:
            return None
        table = self._file.read([column]) if self._is_parquet else self._file
        return table.column(column).to_pylist()

    def value(self, column: str, row: int) -> Any:
        """One cell."""
        group = bisect.bisect_right(self._starts, row) - 1
        if group != self._group[0]:
            table = self._file
            if self._is_parquet:
                table = self._file.read_row_group(group, columns=[column])
            self._group = (group, table.column(column))
        return self._group[1][row - self._starts[group]].as_py()


@functools.lru_cache(maxsize=1)
def _open_table(path: str) -> _Table:
    return _Table(path)


def _import_pyarrow(root: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"--input: {root}: datasets of Hugging Face are read by the package "
            "pyarrow, which is not installed (pip install pyarrow)"
        ) from error


def _declared(root: str, schema: Any) -> dict[str, Any]:
    """What a table's metadata say of its columns."""
    content = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(content).get("info", {}).get("features", {})
        return dict(features.items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"--input: {root}: has damaged metadata ({first_line(error)})"
        ) from error


def _image_column(schema: Any, features: dict) -> str | None:
    """The column declared as images, or one that looks like it."""
    declared = [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    usual = ("image", "img", "jpg", "png", "webp")
    for name in (*usual, *declared):
        if name in declared or (not declared and name in schema.names):
            return name
    return None


def _label_column(schema: Any, features: dict) -> tuple[str | None, list[str]]:
    """The column of classes and their names."""
    for name, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            return name, [str(name) for name in feature.get("names", ())]
    for name in ("label", "labels"):
        if name in schema.names and str(schema.field(name).type).startswith("int"):
            return name, []
    return None, []


def find_files(folder: str) -> list[tuple[str, str | None]]:
    """The files of a saved dataset, or all parquet files below a folder."""
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):
        splits = _names(folder, "dataset_dict.json", lambda content: content["splits"])
        return [
            (f"{split}/{name}", split)
            for split in splits
            for name, _ in find_files(os.path.join(folder, split))
        ]
    if os.path.exists(os.path.join(folder, "state.json")):
        names = _names(
            folder,
            "state.json",
            lambda content: [file["filename"] for file in content["_data_files"]],
        )
        return [(name, None) for name in names]
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".parquet"):
                found.append(os.path.relpath(os.path.join(place, name), folder))
    matches = [_SHARD.search(os.path.basename(path)) for path in found]
    named = all(matches)
    return sorted(
        (path, match.group(1) if named and match else None)
        for path, match in zip(found, matches, strict=True)
    )


def _names(folder: str, file: str, find: Callable[[Any], Any]) -> list[str]:
    """Names of splits or files that a dataset's own file lists.

    Raises:
      DataError: it is damaged, or has names that lead elsewhere.
    """
    path = os.path.join(folder, file)
    try:
        with open(path, encoding="utf-8") as opened:
            names = list(find(json.load(opened)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"--input: file {path}: is damaged ({first_line(error)})"
        ) from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise DataError(
                f"--input: file {path}: names {name!r}: must be letters, digits, '_', "
                "'.' and '-'"
            )
    return names
