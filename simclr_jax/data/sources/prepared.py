"""Datasets that `simclr_jax.prepare` wrote: one range request reads any image.

A dataset's folder holds `manifest.json`, TFRecord shards, and for each split an index
with the position of every record.
"""

import io
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from simclr_jax.data.sources import storage
from simclr_jax.errors import DataError, StoreFailed, first_line

MANIFEST = "manifest.json"
VERSION = 1
ALL = "all"


class ShardSource:
    """A prepared dataset, local or on a store that TensorFlow reads."""

    unpack = None

    def __init__(self, folder: str, *, split: str) -> None:
        """Opens the dataset and checks the sizes of its files.

        Args:
          folder: the `--output` of `simclr_jax.prepare`.
          split: one of its splits, or 'all'.

        Raises:
          DataError: the folder is no prepared dataset, has no such split, or a file is
            missing or has another size.
        """
        if not storage.is_remote(folder):
            folder = os.path.expanduser(folder)
        self._folder = folder.rstrip("/") or "/"
        self.name = f"prepared:{folder}/{split}"
        manifest = read_manifest(self._folder)
        splits = manifest["splits"]
        if split != ALL and split not in splits:
            raise DataError(
                f"split {split!r} of prepared:{folder}: must be one of "
                f"{', '.join(splits)}, or {ALL!r}"
            )
        chosen = list(splits) if split == ALL else [split]
        self._check_sizes([f for name in chosen for f in _files(splits[name])])
        self._paths: list[str] = []
        indices = []
        for name in chosen:
            index = self._read_index(splits[name])
            index["shard"] = index["shard"] + len(self._paths)
            indices.append(index)
            self._paths += [self._path(s["file"]) for s in splits[name]["shards"]]
        self._shard, self._offset, self._length, self.labels = (
            np.concatenate([index[key] for index in indices])
            for key in ("shard", "offset", "length", "label")
        )
        self.num_examples = len(self.labels)
        self.class_names: list[str] | None = manifest["class_names"]
        self.num_classes = len(self.class_names) if self.class_names else None
        self.encoded = True
        self.image_shape: tuple[int, int] | None = None

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`; neighbours in a shard are read together."""
        records = storage.read_ranges(
            self._paths,
            self._shard[indices],
            self._offset[indices],
            self._length[indices],
        )
        for number, index in enumerate(indices):
            try:
                records[number] = _image_in(records[number])
            except (IndexError, KeyError) as error:
                raise DataError(
                    f"{self.describe(int(index))}: holds no image"
                ) from error
        return records, self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source`."""
        path = self._paths[self._shard[index]]
        return f"record {index} of {self.name} (file {path})"

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"

    def _check_sizes(self, files: list[dict[str, Any]]) -> None:
        paths = [self._path(file["file"]) for file in files]
        with ThreadPoolExecutor(16) as pool:
            for path, file, size in zip(
                paths, files, pool.map(storage.file_size, paths), strict=True
            ):
                if size is None:
                    raise DataError(f"file {path}: is missing from the dataset")
                if size != file["bytes"]:
                    raise DataError(
                        f"file {path}: has {size} bytes, must have {file['bytes']} as "
                        f"{MANIFEST} says, so it is damaged or of another dataset"
                    )

    def _read_index(self, split: dict[str, Any]) -> dict[str, np.ndarray]:
        path = self._path(split["index"]["file"])
        content = _content(path)
        try:
            index = read_index(content)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"file {path}: is no index ({error})") from error
        counts = [shard["records"] for shard in split["shards"]]
        if np.bincount(index["shard"], minlength=len(counts)).tolist() != counts:
            raise DataError(
                f"file {path}: has other numbers of records than {MANIFEST}"
            )
        return index


def read_manifest(folder: str) -> dict[str, Any]:
    """The content of a prepared dataset's `manifest.json`.

    Raises:
      DataError: there is none, since the folder is no dataset or an unfinished one; or
        it is unreadable.
    """
    path = f"{folder.rstrip('/')}/{MANIFEST}"
    if storage.file_size(path) is None:
        raise DataError(
            f"dataset prepared:{folder}: has no {MANIFEST}, so "
            "`python -m simclr_jax.prepare` did not finish it; the same command resumes"
        )
    content = _content(path)
    try:
        manifest = json.loads(content)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"file {path}: is no manifest ({error!r})") from error
    if version != VERSION:
        raise DataError(
            f"file {path}: has format_version {version}, must be {VERSION}; prepare "
            "the dataset again"
        )
    return manifest


def read_index(content: bytes) -> dict[str, np.ndarray]:
    """The position of every record: shard, offset and length of its data, label."""
    with np.load(io.BytesIO(content)) as arrays:
        return {key: arrays[key] for key in ("shard", "offset", "length", "label")}


def _image_in(example: bytes) -> bytes:
    """The value of the feature `image` of a serialised `tf.train.Example`.

    Raises:
      IndexError, KeyError: there is none.
    """
    # Example.features, then a map from names (1) to Features (2), each of which is a
    # list of values: bytes (1), floats or integers.
    for entry in _fields(_fields(example)[0][1]):
        named = dict(_fields(entry[1]))
        if named[1] == b"image":
            return dict(_fields(dict(_fields(named[2]))[1]))[1]
    raise KeyError("image")


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """(number, content) of the fields of a protocol buffer that have a length.

    These are all fields of an Example down to its values.
    """
    fields, position = [], 0
    while position < len(message):
        tag, position = _varint(message, position)
        length, position = _varint(message, position)
        if tag & 7 != 2 or position + length > len(message):
            raise IndexError(f"no field of {length} bytes at {position}")
        fields.append((tag >> 3, message[position : position + length]))
        position += length
    return fields


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """An integer in seven bits a byte, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _content(path: str) -> bytes:
    try:
        return storage.read_file(path)
    except StoreFailed:
        raise
    except Exception as error:  # of the disk or of TensorFlow's store
        raise DataError(f"file {path}: cannot be read ({first_line(error)})") from error


def _files(split: dict[str, Any]) -> list[dict[str, Any]]:
    return [*split["shards"], split["index"]]
