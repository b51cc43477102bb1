"""Folders of image files."""

import functools
import logging
from typing import NamedTuple

import numpy as np

from simclr_jax.data import image_files, image_traits, own_images, white_level
from simclr_jax.data.sources import (
    bad_records,
    folder_files,
    folder_layout,
    folder_names,
    folder_reading,
    hints,
    kept,
    listings,
    measured,
    split_names,
    storage,
)
from simclr_jax.data.sources.folder_files import IMAGE_SUFFIXES
from simclr_jax.data.sources.folder_layout import Layout
from simclr_jax.data.sources.listings import Listing
from simclr_jax.errors import BadRecord, DataError

_LOG = logging.getLogger(__name__)
# What a split may be beside a name.
ALL, WHOLE = "all", "."


class FolderSource:
    """A folder of image files, with the splits and classes of its sub-folders."""

    unpack = None

    def __init__(
        self,
        folder: str,
        *,
        split: str = ALL,
        sharing: kept.Sharing = kept.ALONE,
        on_bad_record: bad_records.OnBadRecord = bad_records.refuse,
        exif_orientation: bool = True,
        white_level: int | None = None,
    ) -> None:
        """Lists and checks the files.

        Args:
          folder: local or on a store; searched recursively.
          split: one that is there, by its name or its meaning (see `split_names`), or
            any sub-folder; 'all' for everything, of splits without those held out; '.'
            for everything, the sub-folders being classes whatever their names.
          sharing: the processes that open it too, and may share the checks.
          on_bad_record: called with each file that is no image; if it returns, the file
            remains an image of the dataset, and one of `bad_records`.
          exif_orientation: images are turned upright by their EXIF data.
          white_level: of images of more than 8 bits; measured where it is None.

        Raises:
          DataError: no such folder or split, no image in it; or by `on_bad_record`.
        """
        root = storage.expanded(folder)
        if not storage.is_folder(root):
            raise DataError(
                f"dataset folder:{root}: no such folder{hints.of_prepare(folder)}"
            )
        part = _find_part(root, split)
        self._root, layout = part.root, part.layout
        self._is_distant = storage.is_distant(root)
        self.name = f"folder:{self._root}"
        self.split = part.split
        images, there = _find_files(part)
        self.num_ignored = sum(left.count for left in layout.left_out.values())
        if not images.paths:
            raise DataError(
                f"dataset {self.name}: holds no image (looked for "
                f"{', '.join(IMAGE_SUFFIXES)} among {part.num_files} files)"
                f"{''.join(f'; {line}' for line in layout.left_out_in_words())}"
                f"{hints.of_prepare(root, layout.names_left_out())}"
            )
        _log_once(f"{part.what}:\n{layout.table()}")
        if part.of and part.of != [split]:
            held_out = [name for name in layout.splits if name not in part.of]
            without = f", without {', '.join(held_out)}" if split == ALL else ""
            _LOG.info(
                "%s: split %r is %s%s: %d images",
                *(part.what, split, ", ".join(part.of), without, len(images.paths)),
            )
        found: list[BadRecord] = []

        def note_bad(error: BadRecord, step: int) -> None:
            on_bad_record(error, step)
            found.append(error)

        traits = folder_files.check(
            self._root,
            images,
            what=self.name,
            sharing=sharing,
            on_bad_record=note_bad,
        )
        self._prepare_handling(images, traits, exif_orientation, white_level)
        self.bad_records = tuple(found)
        self._paths, self._sizes = images.paths, images.sizes
        self.num_examples = len(self._paths)
        self.encoded = True
        self.image_shape: tuple[int, int] | None = None
        self.labels: np.ndarray = layout.labels[part.chosen][there]
        self.class_names = layout.class_names if (self.labels >= 0).any() else None
        self.num_classes = len(self.class_names) if self.class_names else None

    def _prepare_handling(
        self,
        images: folder_files.Files,
        traits: np.ndarray,
        exif_orientation: bool,
        level: int | None,
    ) -> None:
        """Counts formats, logs them, and decides on the white level."""
        known = traits[traits != folder_files.NO_IMAGE]
        if not exif_orientation:
            known = known & ~image_traits.TURNED
        self.format_counts = image_traits.counts(known)
        _LOG.info("%s: %s", self.name, image_traits.in_words(self.format_counts))
        good = traits != folder_files.NO_IMAGE
        deep = np.flatnonzero(good & (traits & image_traits.DEEP != 0)).tolist()
        if level is None and deep:
            level = measured.measure(self._root, images.choose(deep), what=self.name)
        if deep:
            _LOG.info("%s: white level %d of more than 8 bits", self.name, level)
        self.exif_orientation, self.white_level = exif_orientation, level
        self._handling = own_images.Handling(
            exif_orientation, white_level.FULL if level is None else level
        )

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        records = np.empty(len(indices), object)
        paths = [self._path(index) for index in indices.tolist()]
        read = storage.each if self._is_distant else map
        handled = functools.partial(read_image_file, handling=self._handling)
        for n, content in enumerate(read(handled, paths)):
            records[n] = content
        return records, self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source`."""
        return f"file {self._path(index)}"

    def listing(self) -> Listing:
        """See `Source`: paths below the folder, and sizes."""
        return Listing(
            self.num_examples,
            self.num_classes,
            self.class_names,
            *listings.of_files(self._paths, self._sizes),
        )

    def _path(self, index: int) -> str:
        return f"{self._root.rstrip('/')}/{self._paths[index]}"


class _Part(NamedTuple):
    """The images of a folder that a split stands for.

    Attributes:
      root: the folder that their paths are relative to.
      paths: of the images.
      known: as in `folder_names.Names`, by these paths.
      layout: of the whole folder.
      chosen: which of its images they are, bool [n].
      split: the name that says exactly this.
      of: the splits, if there are some.
      what: the whole folder, for messages.
      num_files: in it, images or not.
    """

    root: str
    paths: list[str]
    known: dict[str, tuple[int, int]]
    layout: Layout
    chosen: np.ndarray
    split: str
    of: list[str]
    what: str
    num_files: int


def _find_part(root: str, split: str) -> _Part:
    """Raises DataError if there is no such split."""
    names = folder_names.find(root)
    what = f"folder:{root}"
    layout = folder_layout.understand(
        names.paths,
        (*IMAGE_SUFFIXES, *image_files.HEIF_SUFFIXES),
        top_folders=folder_reading.CLASSES if split == WHOLE else folder_reading.AUTO,
    )
    splits: list[str] = []
    if split not in (ALL, WHOLE):
        below = f"{root.rstrip('/')}/{split}"
        if split not in layout.splits and storage.is_folder(below):
            return _find_part(below, ALL)
        split = _find_split(split, layout, what)
        splits = [split]
    elif layout.splits:
        splits = split_names.to_train(layout.splits, what=what)
    chosen = np.ones(len(layout.numbers), bool)
    if splits:
        chosen = layout.of_splits(splits)
    paths = [names.paths[n] for n in layout.numbers[chosen].tolist()]
    known = names.known
    if len(splits) == 1 and layout.split_folders:
        inner = "/".join(filter(None, (layout.base, splits[0])))
        root = f"{root.rstrip('/')}/{inner}"
        paths = [path[len(inner) + 1 :] for path in paths]
        known = {path: known[f"{inner}/{path}"] for path in paths if known}
    num_files = len(names.paths)
    return _Part(root, paths, known, layout, chosen, split, splits, what, num_files)


def _find_files(part: _Part) -> tuple[folder_files.Files, np.ndarray]:
    """The files of a part that are there, and which of its paths they are, bool [n]."""
    images = folder_files.measure(part.root, part.paths, part.known)
    there = images.times != 0
    for n in np.flatnonzero(~there).tolist():
        part.layout.leave_out(folder_layout.LINK, part.paths[n])
    # Files of this name may be JPEGs all the same.
    for n in np.flatnonzero(there).tolist():
        path = part.paths[n]
        if path.lower().endswith(image_files.HEIF_SUFFIXES):
            head = storage.read_beginning(f"{part.root}/{path}", 12)
            if image_files.heif_kind(head):
                part.layout.leave_out(folder_layout.HEIF, path)
                there[n] = False
    return images.choose(np.flatnonzero(there).tolist()), there


def _find_split(wanted: str, layout: Layout, what: str) -> str:
    found = split_names.find(wanted, layout.splits, what=what)
    if found is None:
        there = ", ".join(layout.splits) or "none; 'all' takes all images"
        raise DataError(
            f"dataset {what}: no such folder or split: {wanted!r} means a sub-folder "
            f"of this name, or one such as 'training_set' for 'train' (splits that are "
            f"there: {there})"
        )
    if layout.splits[found] == split_names.TEST != split_names.meaning(wanted):
        _LOG.warning(
            "%s: there is no split %r; the test split %s takes its place",
            *(what, wanted, found),
        )
    return found


@functools.cache
def _log_once(text: str) -> None:
    """Splits of a dataset are opened one by one, and all say the same."""
    _LOG.info("%s", text)


def read_image_file(
    path: str, handling: own_images.Handling = own_images.DEFAULT
) -> bytes:
    """The bytes of an image file, as a JPEG or PNG; see `own_images.as_jpeg_or_png`.

    TensorFlow decodes every JPEG and PNG to RGB: grey, palettes, CMYK, alpha (dropped,
    as torchvision's loader does).

    Raises:
      StoreFailed, OSError: as `storage.read_file`.
      NotAnImage: the file is none, see `image_files`.
    """
    return own_images.as_jpeg_or_png(storage.read_file(path), handling)
