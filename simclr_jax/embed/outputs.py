"""The files of the command: features as .npz or Parquet, and lists as TSV.

Each appears as a whole or not at all, and the features come last: where they are, all
other files are. Parts are written one by one, so that memory holds one of them.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import numpy as np

from simclr_jax import paths
from simclr_jax.embed.parts import Part
from simclr_jax.errors import ConfigError
from simclr_jax.runs import atomic
from simclr_jax.runs.quarantine import escaped

NPZ, PARQUET = ".npz", ".parquet"
BROKEN, NEIGHBOURS, DUPLICATES = "broken", "neighbours", "duplicates"
_FLAG = "output"
_NAMES_AT_A_TIME = 4096


def check_name(output: str) -> None:
    """Raises ConfigError unless the file can be written in the format of its name."""
    if not output.endswith((NPZ, PARQUET)) or paths.as_path(output).stem == "":
        raise ConfigError(f"--{_FLAG}={output}: must end in {NPZ} or {PARQUET}")
    if output.endswith(PARQUET) and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"--{_FLAG}={output}: needs the package pyarrow, which is not installed; "
            f"install it with `pip install simclr_jax[parquet]`, or write {NPZ}"
        )


def companion(output: str, name: str) -> str:
    """The path of a list beside the features, such as FILE.broken.tsv."""
    return f"{output.removesuffix(NPZ).removesuffix(PARQUET)}.{name}.tsv"


def exists(path: str) -> bool:
    """Whether there is something at a path.

    Raises:
      ConfigError: it cannot be seen.
    """
    with atomic.one_line(f"--{_FLAG}: {path} cannot be read"):
        return paths.as_path(path).exists()


def remove(path: str) -> None:
    """Removes a file, if it is there."""
    with atomic.one_line(f"file {path}: cannot be removed"):
        paths.as_path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def published(path: str) -> Iterator[pathlib.Path]:
    """A local file to write, which becomes `path` unless an error is raised.

    Raises:
      ConfigError: it cannot be written.
    """
    target = paths.as_path(path)
    with atomic.one_line(f"--{_FLAG}: {path} cannot be written"):
        if paths.is_store(path):
            with tempfile.TemporaryDirectory(prefix="simclr_jax-") as folder:
                yield (local := pathlib.Path(folder) / target.name)
                try:
                    with local.open("rb") as file, target.open("wb") as copy:
                        shutil.copyfileobj(file, copy, 2**24)
                except BaseException:
                    # What was sent of it must not pass for the file.
                    with contextlib.suppress(Exception):
                        target.unlink(missing_ok=True)
                    raise
            return
        target = pathlib.Path(os.path.realpath(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            yield unfinished
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def table(path: str, columns: tuple[str, ...]) -> Iterator[Callable[..., Any]]:
    """Writes a TSV file: yields a function that writes a row of escaped cells."""
    with published(path) as local, local.open("w", encoding="utf-8") as file:
        _row(file, columns)
        yield lambda *cells: _row(file, cells)
        file.flush()


def _row(file: TextIO, cells: Iterable[object]) -> None:
    file.write("\t".join(escaped(str(cell)) for cell in cells) + "\n")


def write_features(
    path: str,
    parts: Callable[[], Iterator[Part]],
    *,
    name_of: Callable[[int], str],
    class_names: list[str],
) -> None:
    """Writes features with the names and labels of their images.

    Args:
      path: its suffix says the format.
      parts: begins to read them.
      name_of: names an image by its number.
      class_names: of the labels; empty where they have none.

    Raises:
      ConfigError: it cannot be written.
    """
    write = _write_npz if path.endswith(NPZ) else _write_parquet
    with published(path) as local:
        write(local, parts, name_of, class_names)


def _write_npz(
    path: pathlib.Path,
    parts: Callable[[], Iterator[Part]],
    name_of: Callable[[int], str],
    class_names: list[str],
) -> None:
    rows = [(part.index, part.labels, part.features.shape[1]) for part in parts()]
    index = np.concatenate([row[0] for row in rows])
    labels = np.concatenate([row[1] for row in rows])
    shape = len(index), rows[0][2]
    longest = max((len(name_of(i)) for i in index.tolist()), default=1)
    of_names = np.dtype(f"<U{max(1, longest)}")

    def names() -> Iterator[np.ndarray]:
        for start in range(0, len(index), _NAMES_AT_A_TIME):
            some = index[start : start + _NAMES_AT_A_TIME].tolist()
            yield np.array([name_of(i) for i in some], of_names)

    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        x = (part.features.astype("<f4", copy=False) for part in parts())
        _member(archive, "features", shape, np.dtype("<f4"), x)
        _array(archive, "index", index.astype("<i8"))
        _array(archive, "labels", labels.astype("<i4"))
        # Unicode of NumPy has 4 bytes for each character.
        _member(archive, "paths", (len(index),), of_names, names(), packed=True)
        _array(archive, "class_names", np.array(class_names, "U"))


def _array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    _member(archive, name, array.shape, array.dtype, [array])


def _member(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunks: Iterable[np.ndarray],
    *,
    packed: bool = False,
) -> None:
    """Writes an array to an archive, chunk by chunk; always with the same bytes."""
    info = zipfile.ZipInfo(f"{name}.npy")
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(chunk.tobytes())


def _write_parquet(
    path: pathlib.Path,
    parts: Callable[[], Iterator[Part]],
    name_of: Callable[[int], str],
    class_names: list[str],
) -> None:
    """A row group for each part; `class_name` is null where there is none."""
    import pyarrow as pa
    from pyarrow import parquet

    def text(name: str) -> str:
        # Names of files may be no text; Parquet's strings are.
        return name.encode(errors="backslashreplace").decode()

    classes = [*map(text, class_names)]
    writer = None
    with contextlib.ExitStack() as stack:
        for part in parts():
            flat = pa.array(part.features.reshape(-1))
            labels = part.labels.tolist()
            columns = {
                "path": pa.array(
                    [text(name_of(i)) for i in part.index.tolist()], pa.string()
                ),
                "index": pa.array(part.index),
                "label": pa.array(part.labels),
                "class_name": pa.array(
                    [classes[i] if 0 <= i < len(classes) else None for i in labels],
                    pa.string(),
                ),
                "features": pa.FixedSizeListArray.from_arrays(
                    flat, part.features.shape[1]
                ),
            }
            rows = pa.table(columns)
            if writer is None:
                metadata = {"class_names": json.dumps(classes)}
                schema = rows.schema.with_metadata(metadata)
                writer = stack.enter_context(parquet.ParquetWriter(path, schema))
            writer.write_table(rows.replace_schema_metadata(metadata))
