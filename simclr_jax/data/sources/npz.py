"""Images in `.npz` files, under the names and in the layouts that are usual for them.

Such as those of Keras' MNIST and CIFAR-10 (`x_train`, `y_train`, `x_test`, `y_test`),
of CIFAR's own rows (`data` [N, 3072], `labels`) and of MedMNIST (`train_images`, ...).
"""

import io
import logging
import math
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from simclr_jax.data.sources import storage
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.errors import DataError, first_line

_LOG = logging.getLogger(__name__)
# Of several names in a file the first is taken.
_IMAGES = ("images", "image", "x", "data", "imgs", "img")
_LABELS = ("labels", "label", "y", "targets", "target", "fine_labels")
# What a split may be called; a request for one finds it under any name of its line.
_SPLITS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
_SPLIT_OF = {name: names[0] for names in _SPLITS for name in names}
_CHUNK_BYTES = 64 << 20
# By how much the other order of a row's numbers must be smoother to be believed.
_SMOOTHER = 0.8
_LAYOUTS = (
    "images and labels; data and labels; x_train, y_train, x_test and y_test; or "
    "train_images, train_labels, val_images, val_labels, test_images and test_labels"
)

# By what they are of, 'images' or 'labels': the name of an array.
_Group = dict[str, str]


def open_npz(path: str, split: str) -> ArraySource:
    """Reads the images of a file, or those of one of its splits.

    Args:
      path: of the file, local or on a store.
      split: for a file whose arrays are named by splits.

    Raises:
      DataError: it is no such file, its arrays have other names, or what they hold is
        no images or labels; the message says what they must be.
    """
    name = f"npz:{path}"
    with _Arrays(path) as arrays:
        groups = _groups(arrays.names)
        if not groups:
            raise DataError(
                f"file {path}: holds the arrays {', '.join(sorted(arrays.names))}: "
                f"must be images, and labels where known ({_LAYOUTS})"
            )
        key = "" if "" in groups else _SPLIT_OF.get(split, split)
        if key not in groups:
            raise DataError(
                f"split {split!r} of {name}: it holds the splits {', '.join(groups)}; "
                "choose one with config.data.split"
            )
        group = groups[key]
        images, notes = as_images(arrays.read(group["images"]), name=name)
        labels = {}
        for each, found in groups.items():
            if "labels" in found:
                stored = arrays.read(found["labels"])
                flat = _flat(stored)
                if flat is None:
                    _LOG.warning(
                        "%s: labels have shape %s, several for an image: not used",
                        name,
                        stored.shape,
                    )
                else:
                    labels[each] = flat
    if key not in labels:
        source = ArraySource(images, None, name=name)
    else:
        numbers, class_names = _numbered(labels)
        source = ArraySource(images, numbers[key], name=name)
        # The classes are those of all splits.
        source.num_classes = max(int(n.max(initial=0)) for n in numbers.values()) + 1
        source.class_names = class_names
    used = " and ".join(group.values())
    if len(groups) > 1 or notes or used not in ("images", "images and labels"):
        _LOG.info("%s: reads %s%s", name, used, "".join(f"; {n}" for n in notes))
    return source


class _Arrays:
    """The arrays of a file; errors name it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.names: list[str] = []
        self._file: Any = None
        self._archive: Any = None

    def __enter__(self) -> "_Arrays":
        try:
            self._guarded(self._open)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._archive, self._file):
            if opened is not None:
                opened.close()

    def _open(self) -> None:
        # Opened here: where it is no archive, NumPy would leave it open.
        if storage.is_remote(self._path):
            self._file = io.BytesIO(storage.read_file(self._path))
        else:
            self._file = open(storage.expanded(self._path), "rb")  # noqa: SIM115
        if not zipfile.is_zipfile(self._file):
            raise ValueError("it is no zip archive")
        self._file.seek(0)
        self._archive = np.load(self._file)
        self.names = list(self._archive.files)

    def read(self, name: str) -> np.ndarray:
        """One of them; never one of objects, which would run code of the file."""
        return self._guarded(lambda: np.asarray(self._archive[name]))

    def _guarded(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except FileNotFoundError as error:
            storage.check_bucket(self._path)
            raise DataError(f"dataset npz:{self._path}: no such file") from error
        except (DataError, MemoryError):
            raise
        except Exception as error:  # NumPy and zipfile raise anything on damaged files
            raise DataError(
                f"file {self._path}: is no .npz file of plain arrays "
                f"({first_line(error)})"
            ) from error


def _groups(names: list[str]) -> dict[str, _Group]:
    """The arrays of each split, by its name; '' where names tell none."""
    if sorted(names) in (["arr_0"], ["arr_0", "arr_1"]):  # numpy.savez without names
        return {"": dict(zip(("images", "labels"), sorted(names), strict=False))}
    found: dict[str, dict[tuple[str, int], str]] = {}
    for name in names:
        split, word = _parts(name.lower())
        for what, words in (("images", _IMAGES), ("labels", _LABELS)):
            if word in words:
                found.setdefault(split, {})[what, words.index(word)] = name
    groups = {}
    for split, ranked in found.items():
        # The first of the words is the last to be set.
        group = {what: ranked[what, rank] for what, rank in sorted(ranked)[::-1]}
        if "images" in group:
            groups[split] = dict(sorted(group.items()))
    return {"": groups[""]} if "" in groups else groups


def _parts(name: str) -> tuple[str, str]:
    """(split, word) of a name such as 'x_train', 'train_images' or 'labels'."""
    first, _, rest = name.partition("_")
    if first in _SPLIT_OF:
        return _SPLIT_OF[first], rest
    word, _, last = name.rpartition("_")
    if last in _SPLIT_OF:
        return _SPLIT_OF[last], word
    match = re.fullmatch(r"([xy])(train|test|val)|(train|test|val)([xy])", name)
    if match:
        word, split, other, last = match.groups()
        return split or other, word or last
    return "", name


def as_images(array: np.ndarray, *, name: str) -> tuple[np.ndarray, list[str]]:
    """Images of a usual layout, and notes on what was done.

    Args:
      array: [N, H, W, 3 or 1], [N, 3 or 1, H, W], [N, H, W], or rows [N, 3 S S] or
        [N, S S] of square images; integers in [0, 255], floats in [0, 1] or [0, 255],
        or booleans.
      name: for messages.

    Returns:
      uint8 [N, H, W, 3 or 1].

    Raises:
      DataError: another shape, dtype or range.
    """
    array, notes = _channels_last(array, name=name)
    array, note = _eight_bits(array, name=name)
    return array, [*notes, *([note] if note else [])]


def _channels_last(array: np.ndarray, *, name: str) -> tuple[np.ndarray, list[str]]:
    shape = array.shape
    if array.ndim == 4:
        if shape[3] not in (1, 3) and shape[1] in (1, 3):
            last = np.ascontiguousarray(np.moveaxis(array, 1, 3))
            return last, ["channels first, moved to the end"]
        if shape[3] in (1, 3):
            return array, []
    # [H, W, 3] would be a single image.
    if array.ndim == 3 and (shape[2] > 4 or shape[1] == shape[2]):
        return array[..., None], ["grey images without a channel"]
    if array.ndim == 2:
        return _from_rows(array, name=name)
    hint = ""
    if array.ndim == 4 and shape[2] == 3:
        hint = "; bring the images to the front with numpy.moveaxis(images, -1, 0)"
    if array.ndim == 4 and shape[3] == 4:
        hint = "; leave an alpha channel out with images[..., :3]"
    raise DataError(
        f"{name}: images have shape {shape}, must be [N, H, W, 3], [N, H, W, 1], "
        f"[N, 3, H, W], [N, 1, H, W], [N, H, W], or rows of square images{hint}"
    )


def _from_rows(array: np.ndarray, *, name: str) -> tuple[np.ndarray, list[str]]:
    count, length = array.shape
    side = math.isqrt(length)
    if side > 1 and side * side == length:
        return array.reshape(count, side, side, 1), [f"rows of {side} x {side}, grey"]
    side = math.isqrt(length // 3)
    if side <= 1 or 3 * side * side != length:
        raise DataError(
            f"{name}: images are rows of {length} numbers, must be S * S or 3 * S * S "
            "for square images; reshape others to [N, H, W, 3]"
        )
    # CIFAR's have all of red, then green, then blue.
    planes = np.moveaxis(array.reshape(count, 3, side, side), 1, 3)
    mixed = array.reshape(count, side, side, 3)
    if _roughness(mixed) < _SMOOTHER * _roughness(planes):
        note = f"rows of {side} x {side} pixels, each with its three colours together"
        return mixed, [note]
    note = f"rows of {side} x {side}, all of red before green and blue, as CIFAR's"
    return np.ascontiguousarray(planes), [note]


def _roughness(images: np.ndarray) -> float:
    """The mean step between neighbours, of some images."""
    some = images[:: max(1, len(images) // 256)].astype(np.float32)
    steps = [np.abs(np.diff(some, axis=axis)) for axis in (1, 2)]
    return float(sum(step.mean() for step in steps)) if len(some) else 0.0


def _eight_bits(array: np.ndarray, *, name: str) -> tuple[np.ndarray, str]:
    if array.dtype == np.uint8 or not array.size:
        return array, ""
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255), "booleans, as 0 and 255"
    low, high = array.min(), array.max()
    described = f"images are {array.dtype} from {low} to {high}"
    if np.issubdtype(array.dtype, np.integer):
        if low < 0 or high > 255 or high <= 1:
            raise DataError(
                f"{name}: {described}, must be uint8 from 0 to 255; scale them to that "
                "range"
            )
        return array.astype(np.uint8), f"{array.dtype} as uint8"
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{name}: {described}, must be uint8 from 0 to 255")
    # Between the two ranges nobody knows which one is meant.
    if not (low >= 0 and (high <= 1 or 2 <= high <= 255)):
        raise DataError(
            f"{name}: {described}, must be from 0 to 1 or from 0 to 255; undo what "
            "normalized them"
        )
    scale = 255 if high <= 1 else 1
    images = np.empty(array.shape, np.uint8)
    chunk = max(1, _CHUNK_BYTES // max(1, array[0].nbytes))
    for start in range(0, len(array), chunk):
        part = array[start : start + chunk].astype(np.float32)
        images[start : start + chunk] = np.rint(part * scale)
    return images, f"{array.dtype} from {low:g} to {high:g}, times {scale} and rounded"


def _numbered(
    labels: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """(integers [N] for each split, names of the classes where labels are names)."""
    if all(array.dtype.kind in "US" for array in labels.values()):
        texts = {split: array.astype(str) for split, array in labels.items()}
        names = sorted({text for array in texts.values() for text in array.tolist()})
        number = {text: i for i, text in enumerate(names)}
        return {
            split: np.array([number[text] for text in array.tolist()], np.int32)
            for split, array in texts.items()
        }, names
    return labels, None


def _flat(array: np.ndarray) -> np.ndarray | None:
    """One label for each image; None if there are several for one."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.shape[1] > 1:
        one = np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all()
        if not one:
            return None
        array = array.argmax(1)
    if array.dtype.kind == "f" and np.isfinite(array).all():
        whole = array.astype(np.int64)
        if (whole == array).all():
            return whole
    return array
