"""Images in memory, and synthetic ones."""

import numpy as np

from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError


class ArraySource:
    """Images in memory."""

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
        self.record_spec = tf.TensorSpec((None, *images.shape[1:]), tf.uint8)
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
        images = self._images
        if images.shape[-1] == 1:
            images = np.repeat(images, 3, axis=-1)
        return images, self.labels

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return self._images[indices], self.labels[indices]

    def unpack(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        image = tf.repeat(record, 3, axis=-1) if record.shape[-1] == 1 else record
        return image, label

    def describe(self, index: int) -> str:
        """See `Source`."""
        return f"image {index} of {self.name}"


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
