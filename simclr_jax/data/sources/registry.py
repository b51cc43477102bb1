"""Where images come from: arrays, folders, shards, TFDS, photographs, synthetic.

Adding a source is one class with the methods of `records.Source` and one line in
`open_source`.
"""

import os
import zipfile

import numpy as np

from simclr_jax.data.sources import folder, photographs, prepared, tfds
from simclr_jax.data.sources.base import NO_LABEL, Source
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
        """Makes 64 different images that stand for `num_examples`, in 10 classes."""
        shape = (self._DISTINCT, image_size, image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        labels = np.arange(self._DISTINCT, dtype=np.int32) % 10
        super().__init__(images, labels, name="synthetic")
        self.num_examples = num_examples
        self.labels = np.resize(labels, num_examples)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return super().read(indices % self._DISTINCT)


def _open_npz(path: str) -> ArraySource:
    if not os.path.exists(path):
        raise DataError(f"dataset npz:{path}: no such file")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"file {path}: is no .npz file of plain arrays ({error})"
        ) from error
    if "images" not in arrays:
        raise DataError(
            f"file {path}: holds no array 'images' (and, where known, 'labels')"
        )
    return ArraySource(arrays["images"], arrays.get("labels"), name=f"npz:{path}")


def open_source(
    dataset: str,
    *,
    split: str,
    data_dir: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
) -> Source:
    """Opens a dataset by its name in the config.

    Args:
      dataset: a TFDS name; 'folder:PATH'; 'prepared:PATH', as `simclr_jax.prepare`
        leaves it; 'npz:PATH' with arrays `images` and
        optionally `labels`, where '{split}' in PATH stands for the split;
        'photographs'; or 'synthetic:SIZE' (1,281,167 noise images of SIZE pixels).
      split: of TFDS and photographs; for a folder a sub-folder or 'all'.
      data_dir: where TFDS datasets are prepared.
      image_key: the image feature of a TFDS dataset.
      label_key: the label feature of a TFDS dataset.

    Raises:
      DataError: it is not there, is empty or cannot be read.
    """
    kind, _, argument = dataset.partition(":")
    if kind == "folder":
        return folder.FolderSource(argument, split=split)
    if kind == "prepared":
        return prepared.ShardSource(argument, split=split)
    if kind == "npz":
        return _open_npz(argument.replace("{split}", split))
    if kind == "synthetic":
        size = argument or "224"
        if not size.isdecimal() or int(size) < 1:
            raise DataError(
                f"dataset {dataset}: must be synthetic:SIZE with a side in pixels"
            )
        return SyntheticSource(num_examples=1_281_167, image_size=int(size))
    if dataset == "photographs":
        if split not in photographs.SPLITS:
            raise DataError(
                f"split {split!r} of photographs: must be one of "
                f"{', '.join(photographs.SPLITS)}"
            )
        images, labels = photographs.load(split)
        return ArraySource(images, labels, name=f"photographs/{split}")
    return tfds.TFDSSource(
        dataset,
        data_dir=data_dir,
        split=split,
        image_key=image_key,
        label_key=label_key,
    )


def open_tfds(
    dataset: str,
    *,
    split: str,
    data_dir: str | None = None,
    label_key: str = "label",
    certain_key: str | None = None,
) -> Source:
    """Opens a dataset that TFDS has prepared, with one label an image or several.

    Args:
      dataset: TFDS name.
      split: or several, as in 'train+validation'.
      data_dir: where it is prepared.
      label_key: the feature with the class, or with the list of an image's classes.
      certain_key: None, or the feature with the classes of the list that count; labels
        are then vectors, see `prepared.MultiLabelSource`.

    Raises:
      NotPrepared: it is not there.
      DataError: it cannot be read.
    """
    if certain_key is None:
        return tfds.TFDSSource(
            dataset, data_dir=data_dir, split=split, label_key=label_key
        )
    return tfds.MultiLabelSource(
        dataset,
        data_dir=data_dir,
        split=split,
        label_key=label_key,
        certain_key=certain_key,
    )
