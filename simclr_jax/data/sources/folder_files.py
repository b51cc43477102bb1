"""The image files below a folder, measured at each start and checked once."""

import io
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from simclr_jax.data import image_files, image_traits
from simclr_jax.data.progress import Progress
from simclr_jax.data.sources import bad_records, kept, object_store, storage
from simclr_jax.errors import BadRecord, DataError

_LOG = logging.getLogger(__name__)
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff"),
)
# What is checked faster than read is not kept.
FEWEST_KEPT = 10_000
# The number is that of the rules of `image_files`.
_NAME = "checked-images-3"
_TRAITS = "traits"
# Stands for the traits of a file that is no image.
NO_IMAGE = -1
_THREADS = 16
_STATS = 512  # files that a thread looks at, at a time
_MOST_FILES = 1 << 14  # in a part of the work
# Pillow finds an image's size in the first bytes, unless a preview lies before it.
_HEAD_BYTES = 1 << 15


class Files(NamedTuple):
    """Files below a folder.

    Attributes:
      paths: relative to it, with '/'.
      sizes: in bytes, int64 [n].
      times: of the last change, in ns, int64 [n].
    """

    paths: list[str]
    sizes: np.ndarray
    times: np.ndarray

    def choose(self, numbers: list[int]) -> "Files":
        """Some of them."""
        paths = [self.paths[n] for n in numbers]
        return Files(paths, self.sizes[numbers], self.times[numbers])

    def keys(self) -> list[tuple[str, int, int]]:
        """What a check holds for: path, size and time of each."""
        columns = self.paths, self.sizes.tolist(), self.times.tolist()
        return list(zip(*columns, strict=True))


def measure(root: str, paths: list[str], known: Mapping[str, tuple[int, int]]) -> Files:
    """Sizes and times of some files; of a link to nothing, both are 0.

    Args:
      root: the folder.
      paths: relative to it.
      known: size and time of each; {} to look at the files.

    Raises:
      DataError: a file cannot be looked at.
    """
    if known:
        stats = [known[path] for path in paths]
    else:
        parts = [paths[i : i + _STATS] for i in range(0, len(paths), _STATS)]
        with ThreadPoolExecutor(_THREADS) as pool:
            results = pool.map(
                lambda part: [size_and_time(f"{root}/{path}") for path in part], parts
            )
            stats = [stat for result in results for stat in result]
    columns = np.array(stats, np.int64).reshape(-1, 2)
    return Files(paths, *np.ascontiguousarray(columns.T))


def size_and_time(path: str) -> tuple[int, int]:
    """Bytes, and time of the last change in ns, of a file; 0 of a link to nothing.

    Raises:
      DataError: it cannot be looked at.
    """
    try:
        status = storage.retried(path, lambda: os.stat(path))
    except FileNotFoundError:
        return 0, 0
    except OSError as error:
        raise DataError(f"file {path}: cannot be read ({error.strerror})") from error
    return status.st_size, status.st_mtime_ns


def check(
    root: str,
    files: Files,
    *,
    what: str,
    sharing: kept.Sharing,
    on_bad_record: bad_records.OnBadRecord,
) -> np.ndarray:
    """Reads the headers of images, so that a bad file is found before training.

    Files that an earlier start found good and that have not changed are not opened.

    Args:
      root: the folder.
      files: the images below it.
      what: they are, for messages.
      sharing: the processes that open them.
      on_bad_record: called with each file that is no image, step 0 and in any order.

    Returns:
      The `image_traits` of each file, int64 [n]; -1 of one that is no image.

    Raises:
      DataError: a file cannot be opened, and may be intact; or by `on_bad_record`.
      StoreFailed: a disk or store does not answer.
    """
    traits = np.full(len(files.paths), NO_IMAGE, np.int64)
    if len(files.paths) < FEWEST_KEPT:
        everything = list(range(len(files.paths)))
        traits[:] = _check_all(root, files.paths, everything, on_bad_record, None)
        return traits
    place = kept.Place(root)
    arrays = _to_arrays(files)
    before = place.load(_NAME)
    if before is not None and all(
        np.array_equal(before[key], values) for key, values in arrays.items()
    ):
        kept.forget_parts(place, _NAME)
        return before[_TRAITS]
    todo = list(range(len(files.paths)))
    if before is not None:
        keys, wanted = _from_arrays(before).keys(), files.keys()
        known = dict(zip(keys, before[_TRAITS].tolist(), strict=True))
        traits[:] = [known.get(key, NO_IMAGE) for key in wanted]
        todo = np.flatnonzero(traits == NO_IMAGE).tolist()
    progress = Progress(_LOG, len(todo), "files", what=f"Checking {what}: ")
    count = min(-(-len(todo) // (2 * sharing.count)), _MOST_FILES) or 1
    parts = [todo[start : start + count] for start in range(0, len(todo), count)]

    def check_again(numbers: list[int]) -> list[int]:
        return _check_all(root, files.paths, numbers, on_bad_record, progress)

    mine: set[int] = set()

    def check_part(number: int) -> kept.Arrays:
        mine.add(number)
        return {_TRAITS: np.array(check_again(parts[number]), np.int64)}

    stamps = [kept.stamp(*files.choose(part).keys()) for part in parts]
    results = kept.in_parts(place, _NAME, stamps, check_part, sharing)
    for number, result in enumerate(results):
        part = np.array(parts[number], np.int64)
        traits[part] = result[_TRAITS]
        if number not in mine:  # for the reasons
            bad = part[traits[part] == NO_IMAGE].tolist()
            traits[bad] = check_again(bad)
    good = np.flatnonzero(traits != NO_IMAGE)
    arrays = _to_arrays(files.choose(good.tolist()))
    place.save(_NAME, {**arrays, _TRAITS: traits[good]})
    return traits


def _to_arrays(files: Files) -> kept.Arrays:
    text = "\0".join(files.paths).encode(errors="surrogateescape")
    return {
        "paths": np.frombuffer(text, np.uint8),
        "sizes": files.sizes,
        "times": files.times,
    }


def _from_arrays(arrays: kept.Arrays) -> Files:
    text = arrays["paths"].tobytes().decode(errors="surrogateescape")
    return Files(text.split("\0"), arrays["sizes"], arrays["times"])


def _check_all(
    root: str,
    paths: list[str],
    numbers: list[int],
    on_bad_record: bad_records.OnBadRecord,
    progress: Progress | None,
) -> list[int]:
    """Checks some of the files; returns their traits, as `check`."""
    check_one: Callable[[str], int] = _check_local
    if storage.is_remote(root):
        check_one = _check_object

    def result_of(number: int) -> int | BadRecord:
        path = f"{root}/{paths[number]}"
        try:
            traits = _check_one(check_one, path, number)
        except BadRecord as error:
            return error
        if progress:
            progress.add()
        return traits

    found = []
    with ThreadPoolExecutor(_THREADS) as pool:
        each = storage.each if storage.is_distant(root) else pool.map
        for result in each(result_of, numbers):
            if isinstance(result, BadRecord):
                on_bad_record(result, 0)
                result = NO_IMAGE
            found.append(result)
    return found


def _check_one(check: Callable[[str], int], path: str, number: int) -> int:
    try:
        return check(path)
    except _BROKEN as error:
        bad_records.fail(number, f"file {path}", "is no readable image", error)


_BROKEN = (OSError, image_files.NotAnImage)
# Others may have pages or frames further on.
_TOLD_BY_HEAD = ("JPEG", "MPO", "PNG", "BMP")


def _check_local(path: str) -> int:
    return storage.retried(path, lambda: _open_local(path))


def _open_local(path: str) -> int:
    with image_files.open_image(path, num_bytes=os.path.getsize(path)) as image:
        return image_traits.of_image(image)


def _check_object(path: str) -> int:
    def read(stop: int) -> tuple[bytes, int]:
        content, size = storage.retried(
            path, lambda: object_store.read_start(path, stop)
        )
        return bytes(content), size

    head, size = read(_HEAD_BYTES)
    try:
        with image_files.open_image(io.BytesIO(head), num_bytes=size) as image:
            if image.format in _TOLD_BY_HEAD or size <= len(head):
                return image_traits.of_image(image)
    except _BROKEN:
        if size <= len(head):
            raise
    content = io.BytesIO(read(size)[0])
    with image_files.open_image(content, num_bytes=size) as image:
        return image_traits.of_image(image)
