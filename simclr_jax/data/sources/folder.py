"""Folders of image files."""

import concurrent.futures
import io
import logging
import pathlib

import numpy as np
from PIL import Image

from simclr_jax.data.sources import storage
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.errors import DataError

_LOG = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


class FolderSource:
    """A folder of image files; sub-folders are classes if every file is in one."""

    unpack = None

    def __init__(self, folder: str, *, split: str = "all") -> None:
        """Lists and checks the files.

        Args:
          folder: searched recursively.
          split: a sub-folder of `folder`, or 'all' for the folder itself.

        Raises:
          DataError: no such folder, no image in it, or a file that is no image.
        """
        root = pathlib.Path(folder).expanduser()
        root = root if split == "all" else root / split
        self.name = f"folder:{root}"
        if not root.is_dir():
            hint = "" if split == "all" else f" (split {split!r} means a sub-folder)"
            raise DataError(f"dataset {self.name}: no such folder{hint}")
        everything = [path for path in sorted(root.rglob("*")) if path.is_file()]
        self._paths = [p for p in everything if p.suffix.lower() in IMAGE_SUFFIXES]
        self.num_ignored = len(everything) - len(self._paths)
        if self.num_ignored:
            _LOG.info("%s: ignored %d other files", self.name, self.num_ignored)
        if not self._paths:
            raise DataError(
                f"dataset {self.name}: holds no image (looked for "
                f"{', '.join(IMAGE_SUFFIXES)} among {len(everything)} files)"
            )
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for _ in pool.map(_check_is_image, self._paths):
                pass
        self.num_examples = len(self._paths)
        self.encoded = True
        self.image_shape: tuple[int, int] | None = None

        parts = [path.relative_to(root).parts for path in self._paths]
        labelled = all(len(part) > 1 for part in parts)
        classes = sorted({part[0] for part in parts}) if labelled else []
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
            self.labels = np.array([number[p[0]] for p in parts], np.int32)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        records = np.empty(len(indices), object)
        for i, index in enumerate(indices):
            records[i] = read_image_file(self._paths[index])
        return records, self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source`."""
        return f"file {self._paths[index]}"


def _check_is_image(path: pathlib.Path) -> None:
    """Reads the header, so that a bad file is found before training."""
    try:
        storage.retried(str(path), lambda: Image.open(path).close())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"file {path}: is no readable image ({error})") from error


def read_image_file(path: pathlib.Path) -> bytes:
    """The bytes of an image file, as JPEG or PNG.

    TensorFlow decodes every JPEG and PNG to RGB: grey, palettes, CMYK, 16 bits, alpha
    (dropped, as torchvision's loader does). WebP and BMP become uncompressed PNG here,
    which costs a copy and no loss.
    """
    content = storage.read_file(str(path))
    if content.startswith((b"\xff\xd8", b"\x89PNG")):
        return content
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
