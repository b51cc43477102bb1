"""Images in memory: arrays, decoded files, synthetic images."""

import numpy as np

from simclr_jax.data.sources.base import NO_LABEL, Source
from simclr_jax.data.sources.listings import Listing, of_array
from simclr_jax.errors import BadRecord, DataError


def _as_rgb(images: np.ndarray) -> np.ndarray:
    """Images [..., 1 or 3] with three channels."""
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


class ArraySource:
    """Images in memory.

    Attributes beside those of `Source`:
      bad_records: of images in whose places are others; see `in_memory.py`.
    """

    unpack = None
    bad_records: tuple[BadRecord, ...] = ()

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None = None, *, name: str
    ) -> None:
        """Wraps arrays.

        Args:
          images: uint8 [N, H, W, 3] or [N, H, W, 1].
          labels: integers [N], all at least 0, or None.
          name: for messages.

        Raises:
          DataError: wrong shape, dtype or label range.
        """
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise DataError(
                f"{name}: images have shape {images.shape}, must be [N, H, W, 3] or "
                "[N, H, W, 1]"
            )
        if len(images) == 0:
            raise DataError(f"{name}: holds no images")
        if images.dtype != np.uint8:
            raise DataError(f"{name}: images have dtype {images.dtype}, must be uint8")
        self.name = name
        self.num_examples = len(images)
        self.num_classes: int | None = None
        self.class_names: list[str] | None = None
        self.encoded = False
        self.image_shape: tuple[int, int] | None = images.shape[1:3]
        self._images = images
        self.labels: np.ndarray = np.full(len(images), NO_LABEL, np.int32)
        if labels is not None:
            integers = np.issubdtype(labels.dtype, np.integer)
            fitting = integers and labels.shape == (len(images),)
            if not fitting or labels.min(initial=0) < 0:
                raise DataError(
                    f"{name}: labels have shape {labels.shape} and dtype "
                    f"{labels.dtype}, must be one integer of at least 0 for each of "
                    f"{len(images)} images"
                )
            self.labels = labels.astype(np.int32)
            self.num_classes = int(labels.max(initial=0)) + 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(images uint8 [N, H, W, 3], labels int32 [N]), not copied where possible."""
        return _as_rgb(self._images), self.labels

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return _as_rgb(self._images[indices]), self.labels[indices]

    def describe(self, index: int) -> str:
        """See `Source`."""
        return f"image {index} of {self.name}"

    def listing(self) -> Listing:
        """See `Source`."""
        entries = {"images": of_array(self._images), "labels": of_array(self.labels)}
        return Listing(
            self.num_examples, self.num_classes, self.class_names, "array", entries
        )


class HeldFiles:
    """A source of image files whose pixels are in memory, in different sizes.

    As a `Source` it still has the files.

    Attributes beside those of `Source`:
      bad_records: as in `ArraySource`.
    """

    unpack = None
    bad_records: tuple[BadRecord, ...] = ()
    encoded = True

    def __init__(
        self, source: Source, images: list[np.ndarray], labels: np.ndarray
    ) -> None:
        """Wraps a source.

        Args:
          source: of the files.
          images: uint8 [H, W, 3], in its order.
          labels: int32 [N].
        """
        self.name = source.name
        self.num_examples = source.num_examples
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.image_shape = source.image_shape
        self.labels = labels
        self.read = source.read
        self.describe = source.describe
        self.listing = source.listing
        self._images = images

    def pixels(self, indices: np.ndarray) -> list[np.ndarray]:
        """Some images, uint8 [H, W, 3]."""
        return [self._images[index] for index in indices]


class SyntheticSource(ArraySource):
    """Noise images for benchmarks: no disk, no decoding, any number."""

    _DISTINCT = 64

    def __init__(self, *, num_examples: int, image_size: int) -> None:
        """Creates 64 images, repeated to `num_examples`, in 10 classes."""
        shape = (self._DISTINCT, image_size, image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        labels = np.arange(self._DISTINCT, dtype=np.int32) % 10
        super().__init__(images, labels, name="synthetic")
        self.num_examples = num_examples
        self.labels = np.resize(labels, num_examples)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return super().read(indices % self._DISTINCT)
