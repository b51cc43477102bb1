"""ArrayRecord files by ranges: where their records lie, and what is in a range.

An ArrayRecord file is a Riegeli file of one chunk for each record, a chunk with the
places of the others, and a last block of 64 KiB with the place of that one. Formats:
https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md and
https://github.com/google/array_record/blob/main/cpp/layout.proto.

On disks the package array_record reads such files. It knows no s3://, and reads more of
gs:// than it needs.
"""

import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from simclr_jax.data import optional
from simclr_jax.data.sources.protobuf import varint
from simclr_jax.errors import DataError

_BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = 40
_SIMPLE_CHUNK = ord("r")
_UNCOMPRESSED, _ZSTD = 0, ord("z")
_MAGIC = 0x71930E704FDAE05E
# The places of a thousand records, and the last block, are less.
_TAIL = 4 * _BLOCK
_local = threading.local()

# (start, stop) -> the bytes of a file.
Read = Callable[[int, int], bytes]


def find(path: str, size: int, read: Read) -> np.ndarray:
    """Where the records of a file lie.

    Args:
      path: for messages.
      size: of the file, in bytes.
      read: from the file.

    Returns:
      The first byte of each record's chunk, and the end of the last, int64 [n + 1].

    Raises:
      DataError: it is no ArrayRecord file, or records share chunks.
    """
    start = max(0, size - _TAIL)
    tail = read(start, size)
    try:
        postscript = _fields(chunk(tail[-_BLOCK:], size - _BLOCK)[0])
        if size % _BLOCK or postscript[2] != _MAGIC:
            raise ValueError("has no postscript")
        end = postscript[1]
        footer = tail[end - start : -_BLOCK] if end >= start else read(end, size)
        _, *places = map(_fields, chunk(footer, end))
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise DataError(
            f"file {path}: is no whole ArrayRecord file ({error})"
        ) from error
    if any(place[3] != 1 for place in places):
        raise DataError(
            f"file {path}: has several records in a chunk, must have one for reading "
            "at random; write it with group_size:1, as TFDS does"
        )
    return np.array([*(place[1] for place in places), end], np.int64)


def chunk(content: bytes, begin: int) -> list[bytes]:
    """The records of a chunk.

    Args:
      content: of the file from `begin` to the chunk's end or further.
      begin: where the chunk begins in the file.

    Raises:
      ValueError, IndexError, struct.error: it is damaged, or of another kind.
    """
    content = _without_block_headers(content, begin)
    _, size, _, kind, values_size = struct.unpack_from("<QQQQQ", content)
    kind, count = kind & 0xFF, kind >> 8
    if kind != _SIMPLE_CHUNK:
        raise ValueError(f"has a chunk of kind {kind}, must be {_SIMPLE_CHUNK}")
    if len(content) < _CHUNK_HEADER + size:
        raise ValueError("ends within a chunk")
    data = memoryview(content)[_CHUNK_HEADER : _CHUNK_HEADER + size]
    compression = data[0]
    sizes_size, position = varint(data, 1)
    values = _decompress(compression, data[position + sizes_size :])
    if len(values) != values_size:
        raise ValueError(f"has a chunk of {len(values)} bytes, must be {values_size}")
    if count == 1:
        return [values]
    sizes = _decompress(compression, data[position : position + sizes_size])
    records, start, position = [], 0, 0
    for _ in range(count):
        length, position = varint(sizes, position)
        records.append(values[start : start + length])
        start += length
    return records


def _without_block_headers(content: bytes, begin: int) -> bytes:
    first = -begin % _BLOCK
    if first >= len(content):
        return content
    view = memoryview(content)
    blocks = range(first, len(content), _BLOCK)
    parts = [view[block + _BLOCK_HEADER : block + _BLOCK] for block in blocks]
    return b"".join([view[:first], *parts])


def _decompress(compression: int, content: Any) -> bytes:
    if compression == _UNCOMPRESSED:
        return bytes(content)
    if compression != _ZSTD:
        raise ValueError(
            f"is compressed by method {compression}; on stores only zstd can be read"
        )
    if not hasattr(_local, "zstd"):
        if not optional.is_installed("zstandard"):
            what = "reading ArrayRecord files from stores"
            raise DataError(optional.install_hint(what, "zstandard", extra="stores"))
        import zstandard

        _local.zstd, _local.error = zstandard.ZstdDecompressor(), zstandard.ZstdError
    size, position = varint(content, 0)
    try:
        return _local.zstd.decompress(content[position:], max_output_size=size)
    except _local.error as error:
        raise ValueError(str(error)) from error


def _fields(message: bytes) -> dict[int, int]:
    """The integers of a protocol buffer that has nothing else, by their numbers."""
    fields, position = {}, 0
    while position < len(message):
        tag, position = varint(message, position)
        if tag & 7 != 0:  # a message: that of the footer about itself
            return {}
        fields[tag >> 3], position = varint(message, position)
    return fields
