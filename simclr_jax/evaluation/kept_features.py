"""Features of h that stay in the run directory for the next command.

    RUN/eval/features/<key>/index.json
                            labels.npy           int32 [N], or [N, classes]
                            h-<first row>.npy    float32 [n, D], in the dataset's order

The key names the encoder's weights, the images and their preprocessing, which
`index.json` spells out. Each process writes the rows of its devices, and `index.json`
comes last: without it the folder does not count. Any number of devices reads them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel, paths
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources.base import Source
from simclr_jax.data.sources.subsets import Subset
from simclr_jax.errors import DataError, first_line
from simclr_jax.evaluation import features
from simclr_jax.evaluation.features import Features
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic

_LOG = logging.getLogger(__name__)
FOLDER = "features"
_INDEX, _LABELS = "index.json", "labels.npy"
# Of one file: a few requests to a store, and little to hold while it is checked.
_FILE_BYTES = 2**26
# Of all devices together, read at a time.
_READ_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class KeptFeatures:
    """The features of one encoder that a run directory keeps.

    Attributes:
      workdir: the run directory.
      encoder: the checksum of its weights; or 'pixels'.
      preprocessing: of the images.
      config: of the evaluation.
      mesh: all devices.
    """

    workdir: str
    encoder: str
    preprocessing: Preprocessing
    config: config_dict.ConfigDict
    mesh: Mesh

    def read(self, source: Source) -> Features | None:
        """The features of a source, if they are kept; every process has to call it.

        Raises:
          DataError: they are damaged.
        """
        what = self._describe(source)
        folder = self._folder(what)
        with processes.all_or_none(), _as_data_error(folder):
            found = (folder / _INDEX).exists()
        # A store could show processes different states.
        if "" in processes.gather_texts("found" if found else ""):
            return None
        with processes.all_or_none(), _as_data_error(folder):
            files = _Files(folder, json.loads((folder / _INDEX).read_text()))
        if files.index["what"] != what:
            raise DataError(f"file {folder / _INDEX}: is not of {source.name}; delete")
        if source.labels is not None and not np.array_equal(
            source.labels, files.labels
        ):
            _LOG.info("%s: labels have changed; encoding again", source.name)
            return None
        _LOG.info("reading the features of %s from %s", source.name, folder)
        return features.extract(
            _as_they_are,
            files.batches(self.mesh),
            self.mesh,
            num_examples=source.num_examples,
            name=source.name,
            verb="read",
        )

    def write(self, source: Source, h: Features) -> None:
        """Keeps the features of a source; every process has to call it.

        Args:
          source: of the images.
          h: as `features.extract` returns them.

        Raises:
          DataError: they cannot be written.
        """
        what = self._describe(source)
        folder = self._folder(what)
        size = h.x.shape[0] // h.mesh.size
        rows_per_file = max(1, _FILE_BYTES // (4 * h.width))
        # By the first row of each file. Each device has as many, of which the last
        # may be empty.
        starts = np.add.outer(
            np.arange(h.mesh.size) * size, np.arange(0, size, rows_per_file)
        )
        stops = np.minimum(
            starts + rows_per_file, (np.arange(h.mesh.size)[:, None] + 1) * size
        )
        stops = np.clip(stops, starts, len(h))
        with processes.all_or_none(), _as_data_error(folder):
            if processes.is_main():
                folder.mkdir(parents=True, exist_ok=True)
                (folder / _INDEX).unlink(missing_ok=True)
                _save(folder / _LABELS, h.labels)
        checksums = []
        with processes.all_or_none(), _as_data_error(folder):
            for first, part in _local_parts(h.x):
                for start, stop in zip(
                    starts[first // size], stops[first // size], strict=True
                ):
                    rows = np.empty((0, h.width), np.float32)
                    if stop > start:
                        # On the device, so that the host holds one file at a time.
                        rows = np.asarray(
                            jax.lax.dynamic_slice_in_dim(
                                part, int(start - first), int(stop - start)
                            )
                        )
                        _save(folder / _name(start), rows)
                    checksums.append(_crc32(rows))
        crcs = _gather(np.array(checksums, np.uint32), h.mesh)
        index = {
            "what": what,
            "shape": [len(h), h.width],
            "labels_crc32": _crc32(h.labels),
            "files": [
                {"rows": [int(start), int(stop)], "crc32": int(crc)}
                for start, stop, crc in zip(starts.flat, stops.flat, crcs, strict=True)
                if stop > start
            ],
        }
        with processes.all_or_none(), _as_data_error(folder):
            if processes.is_main():
                atomic.write_file(folder / _INDEX, json.dumps(index, indent=2) + "\n")
                _LOG.info("kept the features of %s in %s", source.name, folder)

    def _describe(self, source: Source) -> dict[str, Any]:
        return {
            "encoder": self.encoder,
            "preprocessing": dataclasses.asdict(self.preprocessing),
            "dataset": self.config.data.dataset,
            "data_dir": self.config.data.data_dir,
            "images": source.name,
            "num_images": source.num_examples,
            "subset_crc32": (
                _crc32(source.indices) if isinstance(source, Subset) else None
            ),
        }

    def _folder(self, what: dict[str, Any]) -> epath.Path:
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return paths.as_path(self.workdir) / "eval" / FOLDER / key[:16]


class _Files:
    """The files of kept features."""

    def __init__(self, folder: epath.Path, index: dict[str, Any]) -> None:
        self._folder = folder
        self.index = index
        self.labels = _load(folder / _LABELS, index["labels_crc32"])
        self._starts = np.array([file["rows"][0] for file in index["files"]])

    def batches(self, mesh: Mesh) -> Iterator[dict[str, np.ndarray]]:
        """The rows as `features.extract` takes them."""
        count, width = self.index["shape"]
        per_device = max(1, _READ_BYTES // (4 * width * mesh.size))
        per_device = min(per_device, -(-count // mesh.size))
        num_batches = -(-count // (per_device * mesh.size))
        devices = [
            place
            for place, device in enumerate(mesh.devices.flat)
            if device.process_index == jax.process_index()
        ]
        # Each device goes through its own files.
        load = functools.lru_cache(maxsize=len(devices) + 1)(self._load_file)
        for number in range(num_batches):
            first = np.array(devices)[:, None] * num_batches + number
            positions = (first * per_device + np.arange(per_device)).reshape(-1)
            mask = positions < count
            rows = np.zeros((len(positions), width), np.float32)
            files = np.searchsorted(self._starts, positions, side="right") - 1
            for file in np.unique(files[mask]):
                chosen = mask & (files == file)
                rows[chosen] = load(file)[positions[chosen] - self._starts[file]]
            labels = self.labels[np.minimum(positions, count - 1)]
            yield {"images": rows, "labels": labels, "mask": mask}

    def _load_file(self, number: int) -> np.ndarray:
        file = self.index["files"][number]
        return _load(self._folder / _name(file["rows"][0]), file["crc32"])


@jax.tree_util.Partial
def _as_they_are(rows: jax.Array) -> jax.Array:
    return rows


def _local_parts(x: jax.Array) -> list[tuple[int, jax.Array]]:
    """(first row, rows) of each device of this process, in the order of the rows."""
    parts = [(shard.index[0].start or 0, shard.data) for shard in x.addressable_shards]
    return sorted(parts, key=lambda part: part[0])


def _crc32(values: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(values).data)


def _name(first_row: int) -> str:
    return f"h-{first_row:09d}.npy"


def _save(path: epath.Path, rows: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, rows)


def _load(path: epath.Path, crc32: int) -> np.ndarray:
    """Raises DataError if the values are not those that were written."""
    with _as_data_error(path.parent):
        rows = np.load(io.BytesIO(path.read_bytes()))
    if _crc32(rows) != crc32:
        raise DataError(f"file {path}: is damaged; delete the folder {path.parent}")
    return rows


def _gather(local: np.ndarray, mesh: Mesh) -> np.ndarray:
    """The values of all processes, by device."""
    split = parallel.batch_sharding(mesh)
    return parallel.fetch(mesh, jax.make_array_from_process_local_data(split, local))


@contextlib.contextmanager
def _as_data_error(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        damaged = isinstance(error, ValueError | KeyError)
        if isinstance(error, DataError) or not (damaged or paths.is_failure(error)):
            raise
        raise DataError(
            f"folder {folder}: features cannot be kept or read there "
            f"({first_line(error)})"
        ) from error
