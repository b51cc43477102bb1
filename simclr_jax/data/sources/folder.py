"""Folders of image files."""

import functools
import logging

import numpy as np

from simclr_jax.data import image_files, image_traits, own_images, white_level
from simclr_jax.data.sources import (
    bad_records,
    folder_files,
    kept,
    listings,
    measured,
    storage,
)
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.sources.folder_files import IMAGE_SUFFIXES
from simclr_jax.data.sources.listings import Listing
from simclr_jax.errors import BadRecord, DataError

_LOG = logging.getLogger(__name__)
_HIDDEN = tuple(f"/{suffix}" for suffix in IMAGE_SUFFIXES)
SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


class FolderSource:
    """A folder of image files; sub-folders are classes if every file is in one."""

    unpack = None

    def __init__(
        self,
        folder: str,
        *,
        split: str = "all",
        sharing: kept.Sharing = kept.ALONE,
        on_bad_record: bad_records.OnBadRecord = bad_records.refuse,
        exif_orientation: bool = True,
        white_level: int | None = None,
    ) -> None:
        """Lists and checks the files.

        Args:
          folder: local or on a store; searched recursively.
          split: a sub-folder of `folder`, or 'all' for the folder itself.
          sharing: the processes that open it too, and may share the checks.
          on_bad_record: called with each file that is no image; if it returns, the file
            remains an image of the dataset, and one of `bad_records`.
          exif_orientation: images are turned upright by their EXIF data.
          white_level: of images of more than 8 bits; measured where it is None.

        Raises:
          DataError: no such folder, no image in it; or by `on_bad_record`.
        """
        root = storage.expanded(folder)
        root = root if split == "all" else f"{root.rstrip('/')}/{split}"
        self._root = root
        self._is_distant = storage.is_distant(root)
        self.name = f"folder:{root}"
        if not storage.is_folder(root):
            hint = "" if split == "all" else f" (split {split!r} means a sub-folder)"
            raise DataError(f"dataset {self.name}: no such folder{hint}")
        everything = folder_files.find(root)
        images = everything.choose(
            [n for n, path in enumerate(everything.paths) if _is_named_image(path)]
        )
        self.num_ignored = len(everything.paths) - len(images.paths)
        if self.num_ignored:
            _LOG.info("%s: ignored %d other files", self.name, self.num_ignored)
        if note := image_files.note_of_heif(everything.paths):
            _LOG.warning("%s: %s", self.name, note)
        if not images.paths:
            raise DataError(
                f"dataset {self.name}: holds no image (looked for "
                f"{', '.join(IMAGE_SUFFIXES)} among {len(everything.paths)} files)"
                f"{note and f'; {note}'}"
            )
        found: list[BadRecord] = []

        def note_bad(error: BadRecord, step: int) -> None:
            on_bad_record(error, step)
            found.append(error)

        traits = folder_files.check(
            root, images, what=self.name, sharing=sharing, on_bad_record=note_bad
        )
        self._prepare_handling(images, traits, exif_orientation, white_level)
        self.bad_records = tuple(found)
        self._paths, self._sizes = images.paths, images.sizes
        self.num_examples = len(self._paths)
        self.encoded = True
        self.image_shape: tuple[int, int] | None = None

        tops = [path.partition("/")[0::2] for path in self._paths]
        labelled = all(rest for _, rest in tops)
        classes = sorted({top for top, _ in tops}) if labelled else []
        if split == "all" and len(classes) > 1 and SPLITS.issuperset(classes):
            raise DataError(
                f"dataset {self.name}: its sub-folders {', '.join(classes)} are "
                "splits, not classes; choose one with config.data.split"
            )
        self.num_classes = len(classes) if len(classes) > 1 else None
        self.class_names = classes if len(classes) > 1 else None
        self.labels: np.ndarray = np.full(self.num_examples, NO_LABEL, np.int32)
        if self.num_classes:
            number = {name: i for i, name in enumerate(classes)}
            self.labels = np.array([number[top] for top, _ in tops], np.int32)

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


def _is_named_image(path: str) -> bool:
    lower = f"/{path.lower()}"
    # A name that is nothing but a suffix is that of a hidden file.
    return lower.endswith(IMAGE_SUFFIXES) and not lower.endswith(_HIDDEN)


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
