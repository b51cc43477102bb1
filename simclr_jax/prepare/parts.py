"""Parts of a dataset in preparation: some consecutive images, read and checked.

Which images make up a part depends on the input alone, so that it does not matter which
process writes which part, and a part that is there need not be written again. A part is
a TFRecord file of the images that training can decode, and a table of them all.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from simclr_jax.data.sources.prepared import find_image
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.white_level import Peak
from simclr_jax.errors import StoreFailed, first_line
from simclr_jax.prepare.entries import Entry, Input
from simclr_jax.prepare.image_check import (
    CheckedImage,
    Encoding,
    NotAnImage,
    check_image,
)

# A TFRecord is: length (8 bytes), its checksum (4), the data, their checksum (4).
HEADER, FOOTER = 12, 4
_MAX_FILE_BYTES = 1 << 30
# Of a part: enough for some seconds of work, little enough to be done again.
_PART_IMAGES, _PART_BYTES = 256, 64 << 20


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive images of an input, and where they go.

    Attributes:
      source: what to read them from.
      entries: the images.
      labels: of the images.
      encoding: how to store them.
      stem: path of the part's files, without suffix.
    """

    source: Input
    entries: list[Entry]
    labels: np.ndarray
    encoding: Encoding
    stem: str

    @property
    def records(self) -> pathlib.Path:
        """The TFRecord file."""
        return pathlib.Path(f"{self.stem}.tfrecord")

    @property
    def table(self) -> pathlib.Path:
        """The table of its images; the part is done once this exists."""
        return pathlib.Path(f"{self.stem}.npz")


@dataclasses.dataclass
class Table:
    """What is known of images, a row each.

    Attributes:
      reason: why it is broken; '' for good images. The rest holds for good ones only.
      size: of the record in bytes, without its header and footer.
      image_start, image_size: where the image lies in the record, in bytes.
      source_bytes: of the file.
      width, height: in pixels, as stored.
      format: of the file.
      resized: whether it was shrunk.
      traits: see `data/image_traits.py`.
      peak, fractional: its `white_level.Peak`, if it has more than 8 bits; else -1.
      source_hash: SHA-256 of the file, uint8 [n, 32].
      stored_hash: SHA-256 of what is stored, uint8 [n, 32].
    """

    reason: np.ndarray
    size: np.ndarray
    image_start: np.ndarray
    image_size: np.ndarray
    source_bytes: np.ndarray
    width: np.ndarray
    height: np.ndarray
    format: np.ndarray
    resized: np.ndarray
    traits: np.ndarray
    peak: np.ndarray
    fractional: np.ndarray
    source_hash: np.ndarray
    stored_hash: np.ndarray

    @classmethod
    def join(cls, tables: list["Table"]) -> "Table":
        """One table of several."""
        names = [field.name for field in dataclasses.fields(cls)]
        columns = {n: np.concatenate([getattr(t, n) for t in tables]) for n in names}
        return cls(**columns)

    def peaks(self) -> list[Peak]:
        """Of the images of more than 8 bits."""
        deep = self.peak >= 0
        return [
            Peak(value, fractional)
            for value, fractional in zip(
                self.peak[deep].tolist(), self.fractional[deep].tolist(), strict=True
            )
        ]

    @classmethod
    def load(cls, path: pathlib.Path) -> "Table":
        """Reads what `write_part` wrote."""
        with np.load(path) as arrays:
            return cls(**arrays)


def divide(entries: list[Entry]) -> list[slice]:
    """Which images make up each part."""
    slices, start, size = [], 0, 0
    for i, entry in enumerate(entries):
        if i > start and (i - start == _PART_IMAGES or size + entry.size > _PART_BYTES):
            slices.append(slice(start, i))
            start, size = i, 0
        size += entry.size
    slices.append(slice(start, len(entries)))
    return slices


def write_part(part: Part) -> tuple[int, int]:
    """Reads, checks and stores the images of a part; (how many, how many broken)."""
    # Two processes may write the same part: one whose parent was killed, and the one
    # that took over. What they write is the same.
    unfinished = f"{part.stem}.{os.getpid()}.unfinished"
    rows = []
    with tf.io.TFRecordWriter(unfinished) as writer:
        for entry, label in zip(part.entries, part.labels, strict=True):
            row, record = _prepare(part.source, entry, int(label), part.encoding)
            rows.append(row)
            if record:
                writer.write(record)
    replace(unfinished, part.records)
    columns: dict[str, Any] = _columns(rows)
    with open(unfinished, "wb") as file:
        np.savez(file, **columns)
    replace(unfinished, part.table)
    return len(rows), sum(bool(row["reason"]) for row in rows)


def replace(unfinished: str | os.PathLike, path: str | os.PathLike) -> None:
    """Gives a file its name once all of it is on the disk."""
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(unfinished, path)


def _prepare(
    source: Input, entry: Entry, label: int, encoding: Encoding
) -> tuple[dict, bytes]:
    """(a row of the table, the record) of one image; no record if it is broken."""
    try:
        content = _read(source, entry)
        image = check_image(content, encoding)
    except NotAnImage as error:
        return _broken(str(error)), b""
    record = _example(image, entry, label)
    image_start, image_stop = find_image(record)
    row = {
        "reason": "",
        "size": len(record),
        "image_start": image_start,
        "image_size": image_stop - image_start,
        "source_bytes": len(content),
        "width": image.width,
        "height": image.height,
        "format": image.format,
        "resized": image.resized,
        "traits": image.traits,
        "peak": image.peak.value if image.peak else -1.0,
        "fractional": bool(image.peak and image.peak.fractional),
        "source_hash": hashlib.sha256(content).digest(),
        "stored_hash": hashlib.sha256(image.content).digest(),
    }
    return row, record


def _read(source: Input, entry: Entry) -> bytes:
    if entry.size > _MAX_FILE_BYTES:
        raise NotAnImage(f"has {entry.size} bytes, more than {_MAX_FILE_BYTES}")
    try:
        return source.read(entry)
    except StoreFailed:
        # That says nothing about the image: the same command can resume later.
        raise
    except OSError as error:
        # Without the path, which is the same in every other respect.
        reason = error.strerror or first_line(error)
        raise NotAnImage(f"cannot be read ({reason})") from error
    except (RuntimeError, ValueError) as error:
        raise NotAnImage(f"cannot be read ({first_line(error)})") from error


def _broken(reason: str) -> dict:
    return {
        "reason": reason,
        "size": 0,
        "image_start": 0,
        "image_size": 0,
        "source_bytes": 0,
        "width": 0,
        "height": 0,
        "format": "",
        "resized": False,
        "traits": 0,
        "peak": -1.0,
        "fractional": False,
        "source_hash": bytes(32),
        "stored_hash": bytes(32),
    }


def _example(image: CheckedImage, entry: Entry, label: int) -> bytes:
    name = entry.path.encode(errors="surrogateescape")
    values = {
        "file_name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name])),
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.content])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=values))
    # The order of a protocol buffer's map is otherwise left to chance.
    return bytes(example.SerializeToString(deterministic=True))


def _columns(rows: list[dict]) -> dict[str, np.ndarray]:
    hashes = ("source_hash", "stored_hash")
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in hashes:
            columns[name] = np.frombuffer(b"".join(values), np.uint8).reshape(-1, 32)
        else:
            columns[name] = np.array(values)
    return columns
