"""Datasets that `simclr_jax.prepare` wrote: one range request reads any image.

A dataset's folder holds `manifest.json`, TFRecord shards, and for each split an index
with the position of every record.
"""

import io
import json
from typing import Any

import numpy as np

from simclr_jax.data.sources import ranges, split_names, storage
from simclr_jax.data.sources.listings import Listing
from simclr_jax.data.sources.protobuf import varint
from simclr_jax.errors import DataError, StoreFailed, first_line

MANIFEST = "manifest.json"
VERSION = 1
# The manifest's key for what its splits mean, see `split_names`.
MEANINGS = "split_meanings"
# What a split may be beside a name: what is trained on, and everything.
ALL, WHOLE = "all", "."


class ShardSource:
    """A prepared dataset, on a disk or a store."""

    unpack = None

    def __init__(self, folder: str, *, split: str) -> None:
        """Opens the dataset and checks the sizes of its files.

        Args:
          folder: the `--output` of `simclr_jax.prepare`.
          split: one that is there, by its name or its meaning (see `split_names`);
            'all' for everything without the splits held out; '.' for everything.

        Raises:
          DataError: the folder is no prepared dataset, has no such split, or a file is
            missing or has another size.
        """
        self._folder = folder = storage.expanded(folder)
        manifest = read_manifest(self._folder)
        splits = manifest["splits"]
        chosen = _choose(manifest, split, f"prepared:{folder}")
        self.split = split if split in (ALL, WHOLE) else chosen[0]
        self.name = f"prepared:{folder}/{self.split}"
        self._check_sizes([f for name in chosen for f in _files(splits[name])])
        paths: list[str] = []
        indices = []
        for name in chosen:
            index = self._read_index(splits[name])
            index["shard"] = index["shard"] + len(paths)
            indices.append(index)
            paths += [self._path(s["file"]) for s in splits[name]["shards"]]
        self._files = ranges.Files(paths)
        self._entries = {
            file["file"]: file.get("sha256") or f"{file['bytes']} bytes"
            for name in chosen
            for file in _files(splits[name])
        }
        self._shard, self._offset, self._length, self.labels = (
            np.concatenate([index[key] for index in indices])
            for key in ("shard", "offset", "length", "label")
        )
        # Absent in what earlier versions prepared: then records are read as a whole.
        self._image: tuple[np.ndarray, np.ndarray] | None = None
        if all("image_offset" in index for index in indices):
            offset, length = (
                np.concatenate([index[key] for index in indices])
                for key in ("image_offset", "image_length")
            )
            self._image = offset, length
        self.num_examples = len(self.labels)
        self.class_names: list[str] | None = manifest["class_names"]
        if MEANINGS in manifest and not (self.labels >= 0).any():
            self.class_names = None
        self.num_classes = len(self.class_names) if self.class_names else None
        # What preparing did; absent in what earlier versions prepared, which did not.
        self.exif_orientation = bool(manifest["options"].get("exif_orientation"))
        self.white_level: int | None = manifest.get("white_level")
        self.encoded = True
        self.image_shape: tuple[int, int] | None = None

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`; neighbours in a shard are read together."""
        offset, length = self._image or (self._offset, self._length)
        records = self._files.read(
            self._shard[indices], offset[indices], length[indices]
        )
        if self._image is None:
            for number, index in enumerate(indices):
                try:
                    start, stop = find_image(records[number])
                except (IndexError, KeyError) as error:
                    raise DataError(
                        f"{self.describe(int(index))}: holds no image"
                    ) from error
                records[number] = records[number][start:stop]
        return records, self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source`."""
        path = self._files.path(self._shard[index])
        return f"record {index} of {self.name} (file {path})"

    def file_names(self, indices: np.ndarray) -> list[str]:
        """What the images were called before; reads as little of them as it can.

        A damaged record without a name is called as messages call it.

        Raises:
          StoreFailed: a disk or store does not answer.
        """
        length = self._length[indices]
        # The name comes before the image.
        read = length if self._image is None else self._image[0] - self._offset
        if self._image is not None:
            read = read[indices]
        starts = self._files.read(self._shard[indices], self._offset[indices], read)
        names = []
        for index, start, size in zip(
            indices.tolist(), starts, length.tolist(), strict=True
        ):
            try:
                name = find_file_name(bytes(start), size)
                names.append(name.decode(errors="surrogateescape"))
            except (IndexError, KeyError):
                names.append(self.describe(index))
        return names

    def listing(self) -> Listing:
        """See `Source`: files and checksums, as the manifest has them."""
        return Listing(
            self.num_examples,
            self.num_classes,
            self.class_names,
            "shard",
            self._entries,
        )

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"

    def _check_sizes(self, files: list[dict[str, Any]]) -> None:
        there = storage.files_in(self._folder)
        for file in files:
            path = self._path(file["file"])
            size, _ = there.get(file["file"], (None, None))
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
            _check_index(index, [shard["bytes"] for shard in split["shards"]])
        except Exception as error:  # NumPy and zipfile raise anything on damaged files
            raise DataError(
                f"file {path}: is no index ({first_line(error)})"
            ) from error
        counts = [shard["records"] for shard in split["shards"]]
        if np.bincount(index["shard"], minlength=len(counts)).tolist() != counts:
            raise DataError(
                f"file {path}: has other numbers of records than {MANIFEST}"
            )
        return index


def _choose(manifest: dict[str, Any], split: str, what: str) -> list[str]:
    """The splits of the dataset that a split of the config stands for."""
    names = manifest["splits"]
    meanings = {name: manifest.get(MEANINGS, {}).get(name) for name in names}
    if split == WHOLE or (split == ALL and MEANINGS not in manifest):
        return list(names)
    if split == ALL:
        return split_names.to_train(meanings, what=what)
    # Earlier versions did not write meanings.
    meanings = {n: means or split_names.meaning(n) for n, means in meanings.items()}
    found = split_names.find(split, meanings, what=what)
    if found is None:
        raise DataError(
            f"split {split!r} of {what}: must be one of {', '.join(names)}, or {ALL!r}"
        )
    return [found]


def read_manifest(folder: str) -> dict[str, Any]:
    """The content of a prepared dataset's `manifest.json`.

    Raises:
      DataError: there is none, since the folder is no dataset or an unfinished one; or
        it is unreadable.
    """
    path = f"{folder.rstrip('/')}/{MANIFEST}"
    try:
        missing = storage.file_size(path) is None
    except PermissionError as error:
        raise DataError(f"file {path}: cannot be read ({error.strerror})") from error
    if missing:
        storage.check_bucket(folder)
        raise DataError(
            f"dataset prepared:{folder}: has no {MANIFEST}, so "
            "`python -m simclr_jax.prepare` did not finish it; the same command resumes"
        )
    content = _content(path)
    try:
        manifest = json.loads(content)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = first_line(error)
        raise DataError(f"file {path}: is no manifest ({reason})") from error
    if version != VERSION:
        raise DataError(
            f"file {path}: has format_version {version}, must be {VERSION}; prepare "
            "the dataset again"
        )
    try:
        _check_manifest(manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        missing = isinstance(error, KeyError)
        reason = f"it lacks {error}" if missing else first_line(error)
        raise DataError(f"file {path}: is damaged ({reason})") from error
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raises KeyError, TypeError, AttributeError or ValueError for a wrong one."""

    def check(holds: Any, what: str) -> None:
        if not holds:
            raise ValueError(f"its {what} cannot be used")

    def is_count(value: Any) -> bool:
        return isinstance(value, int) and 0 <= value < 2**63

    names = manifest["class_names"]
    is_list = isinstance(names, list) and all(isinstance(n, str) for n in names)
    check(names is None or is_list, "class_names")
    check(isinstance(manifest["splits"], dict) and manifest["splits"], "splits")
    check(isinstance(manifest.get(MEANINGS, {}), dict), MEANINGS)
    for name, split in manifest["splits"].items():
        for file in _files(split):
            # In the folder of the manifest, wherever that is.
            check(isinstance(file["file"], str) and "/" not in file["file"], "files")
            check(is_count(file["bytes"]), "bytes")
        check(all(is_count(s["records"]) for s in split["shards"]), "records")
        check(split["shards"], f"split {name}")


def read_index(content: bytes) -> dict[str, np.ndarray]:
    """The position of every record: shard, offset and length of its data, label.

    And of the image inside, `image_offset` and `image_length`, if the index has them.
    """
    with np.load(io.BytesIO(content)) as arrays:
        for key in ("shard", "offset", "length", "label"):
            arrays[key]  # raises a KeyError
        return dict(arrays)


def _check_index(index: dict[str, np.ndarray], sizes: list[int]) -> None:
    """Raises ValueError for an index that leads outside of its shards."""
    shard = index["shard"]
    for key, column in index.items():
        if column.shape != shard.shape or column.ndim != 1:
            raise ValueError(f"{key} has shape {column.shape}")
        if not np.issubdtype(column.dtype, np.integer):
            raise ValueError(f"{key} has dtype {column.dtype}")
    if shard.size and not 0 <= shard.min() <= shard.max() < len(sizes):
        raise ValueError("shard has numbers of no shard")
    ends = np.array(sizes, np.int64)[shard]
    for name in ("", "image_"):
        if f"{name}offset" not in index or f"{name}length" not in index:
            continue
        offset = index[f"{name}offset"].astype(np.int64)
        length = index[f"{name}length"].astype(np.int64)
        # Not their sum, which may exceed 64 bits.
        outside = (offset < 0) | (length < 0) | (offset > ends)
        if (outside | (length > ends - offset)).any():
            raise ValueError(f"{name}offset and {name}length lie outside of a shard")


def find_image(example: bytes) -> tuple[int, int]:
    """Where the feature `image` lies in a serialised `tf.train.Example`.

    Returns:
      (its first byte, the byte after its last).

    Raises:
      IndexError, KeyError: there is none.
    """
    # Example.features, then a map from names (1) to Features (2), each of which is a
    # list of values: bytes (1), floats or integers.
    features = _fields(example, 0, len(example))[1]
    position = features.start
    while position < features.stop:
        _, entry, position = _field(example, position, features.stop)
        named = _fields(example, entry.start, entry.stop)
        if example[named[1].start : named[1].stop] == b"image":
            feature = _fields(example, named[2].start, named[2].stop)[1]
            value = _fields(example, feature.start, feature.stop)[1]
            return value.start, value.stop
    raise KeyError("image")


def find_file_name(start: bytes, size: int) -> bytes:
    """The feature `file_name` of a serialised `tf.train.Example`.

    Args:
      start: its first bytes, which hold all features up to this one.
      size: of all of it.

    Raises:
      IndexError, KeyError: it is not there.
    """
    _, position = varint(start, 0)
    stop, position = varint(start, position)
    stop = min(position + stop, size)
    while position < len(start):
        _, entry, position = _field(start, position, stop)
        named = _fields(start, entry.start, entry.stop)
        if start[named[1].start : named[1].stop] == b"file_name":
            feature = _fields(start, named[2].start, named[2].stop)[1]
            value = _fields(start, feature.start, feature.stop)[1]
            return start[value.start : value.stop]
    raise KeyError("file_name")


def _fields(message: bytes, position: int, stop: int) -> dict[int, range]:
    """Where the fields of a protocol buffer lie, by their numbers.

    All must have a length, as all fields of an Example down to its values.
    """
    fields = {}
    while position < stop:
        number, place, position = _field(message, position, stop)
        fields[number] = place
    return fields


def _field(message: bytes, position: int, stop: int) -> tuple[int, range, int]:
    """(number, place, position after it) of the field at a position."""
    tag, position = varint(message, position)
    length, position = varint(message, position)
    if tag & 7 != 2 or position + length > stop:
        raise IndexError(f"no field of {length} bytes at {position}")
    return tag >> 3, range(position, position + length), position + length


def _content(path: str) -> bytes:
    try:
        return storage.read_file(path)
    except StoreFailed:
        raise
    except Exception as error:  # of the disk or of TensorFlow's store
        raise DataError(f"file {path}: cannot be read ({first_line(error)})") from error


def _files(split: dict[str, Any]) -> list[dict[str, Any]]:
    return [*split["shards"], split["index"]]
