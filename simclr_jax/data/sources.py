"""Where images come from: TFDS, folders, arrays, photographs, synthetic.

A source answers two questions. `read(indices)` fetches raw records by number, in
Python and at random; `decode(record, label)` turns one into pixels inside the
TensorFlow graph.
Adding a source is one class and one line in `open_source`.
"""

import concurrent.futures
import io
import itertools
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from simclr_jax.data import photographs
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError

NO_LABEL = -1
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Source(Protocol):
    """Images by number.

    Attributes:
      name: for messages.
      num_examples: how many.
      num_classes: labels are in [0, num_classes); None for unlabelled images.
      record_spec: of the records of one `read`, leading axis first.
    """

    name: str
    num_examples: int
    num_classes: int | None
    record_spec: tf.TensorSpec

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fetches (records [n, ...], labels int32 [n]); called from many threads."""
        ...

    def decode(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Turns one record into (uint8 [H, W, 3], int32 label), as graph operations."""
        ...

    def describe(self, index: int) -> str:
        """Names one record for a message."""
        ...


def _set_rgb(image: tf.Tensor) -> tf.Tensor:
    """Pins the shape to [H, W, 3]; one channel becomes three."""
    if image.shape[-1] == 1:
        image = tf.repeat(image, 3, axis=-1)
    return tf.ensure_shape(image, (None, None, 3))


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
        if images.dtype != np.uint8:
            raise DataError(f"{name}: images have dtype {images.dtype}, must be uint8")
        self.name = name
        self.num_examples = len(images)
        self.num_classes = None
        self.record_spec = tf.TensorSpec((None, *images.shape[1:]), tf.uint8)
        self._images = images
        self._labels = np.full(len(images), NO_LABEL, np.int32)
        if labels is not None:
            if labels.shape != (len(images),) or labels.min(initial=0) < 0:
                raise DataError(
                    f"{name}: labels have shape {labels.shape}, must be one integer of "
                    f"at least 0 for each of {len(images)} images"
                )
            self._labels = labels.astype(np.int32)
            self.num_classes = int(labels.max(initial=0)) + 1

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return self._images[indices], self._labels[indices]

    def decode(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        return _set_rgb(record), label

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

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return super().read(indices % self._DISTINCT)


class FolderSource:
    """A folder of image files; sub-folders, if all files lie in some, are classes."""

    def __init__(self, folder: str, *, split: str = "all") -> None:
        """Lists and checks the files.

        Args:
          folder: searched with everything below it.
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
        if not self._paths:
            raise DataError(
                f"dataset {self.name}: holds no image (looked for "
                f"{', '.join(IMAGE_SUFFIXES)} among {len(everything)} files)"
            )
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            for _ in pool.map(_check_is_image, self._paths):
                pass
        self.num_examples = len(self._paths)
        self.record_spec = tf.TensorSpec((None,), tf.string)

        parts = [path.relative_to(root).parts for path in self._paths]
        labelled = all(len(part) > 1 for part in parts)
        classes = sorted({part[0] for part in parts}) if labelled else []
        self.num_classes = len(classes) if len(classes) > 1 else None
        self._labels = np.full(self.num_examples, NO_LABEL, np.int32)
        if self.num_classes:
            self._labels = np.array([classes.index(p[0]) for p in parts], np.int32)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        records = np.empty(len(indices), object)
        for i, index in enumerate(indices):
            records[i] = read_image_file(self._paths[index])
        return records, self._labels[indices]

    def decode(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        image = tf.io.decode_image(record, channels=3, expand_animations=False)
        return _set_rgb(image), label

    def describe(self, index: int) -> str:
        """See `Source`."""
        return f"file {self._paths[index]}"


def _check_is_image(path: pathlib.Path) -> None:
    """Reads the header, so that a stray file is found before training, not during."""
    try:
        with Image.open(path):
            pass
    except OSError as error:
        raise DataError(f"file {path}: is no readable image ({error})") from error


def read_image_file(path: pathlib.Path) -> bytes:
    """The bytes of an image file, in a form that TensorFlow decodes to RGB exactly.

    Plain JPEG and PNG pass as they are. WebP, palettes, CMYK and images with an alpha
    channel are brought to RGB by Pillow (alpha is dropped, as torchvision's loader
    does) and handed on as BMP, which costs a copy and no loss.
    """
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        plain_modes = {"JPEG": ("RGB", "L"), "PNG": ("RGB", "L", "I;16")}
        transparent = "transparency" in image.info
        if image.mode in plain_modes.get(image.format or "", ()) and not transparent:
            return content
        buffer = io.BytesIO()
        image.convert("RGBA" if transparent else image.mode).convert("RGB").save(
            buffer, "BMP"
        )
        return buffer.getvalue()


class TFDSSource:
    """A dataset that TensorFlow Datasets has prepared on a local or mounted disk.

    Records are read at random: through an index of offsets made at start from TFRecord
    shards (one small read a record), or through ArrayRecord's own.
    """

    def __init__(
        self,
        dataset: str,
        *,
        data_dir: str | None,
        split: str,
        image_key: str = "image",
        label_key: str = "label",
    ) -> None:
        """Opens a prepared dataset; nothing is downloaded.

        Args:
          dataset: TFDS name, with '/config' and ':version' where wanted.
          data_dir: where it was prepared; TFDS's default when None.
          split: a split or slice of one, such as 'train[:90%]'.
          image_key: the feature with the image.
          label_key: the feature with the class label; may be absent.

        Raises:
          DataError: the dataset, split or image feature is not there.
        """
        # Imported here: only this source needs it, and it takes a while.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder

        where = data_dir or tfds.core.constants.DATA_DIR
        self.name = f"{dataset}/{split}"
        try:
            builder = read_only_builder.builder_from_files(
                dataset, data_dir=os.path.expanduser(where)
            )
        except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
            raise DataError(
                f"data.dataset={dataset!r}: TFDS has no prepared copy under "
                f"data.data_dir={where!r}; prepare one with `tfds build "
                f"{dataset.split(':')[0]} --data_dir={where}`"
            ) from error
        if split.split("[")[0] not in builder.info.splits:
            raise DataError(
                f"split {split!r} of {dataset}: must be one of "
                f"{', '.join(builder.info.splits)}, or a slice of it"
            )
        info = builder.info.splits[split]
        features = builder.info.features
        if image_key not in features:
            raise DataError(
                f"data.image_key={image_key!r}: {dataset} has the features "
                f"{', '.join(features)}"
            )
        self.num_examples = info.num_examples
        label_feature = dict(features).get(label_key)
        self.num_classes = getattr(label_feature, "num_classes", None)
        self.record_spec = tf.TensorSpec((None,), tf.string)
        self._image_key = image_key
        self._label_key = label_key if self.num_classes else None
        self._features = features
        self._shards = _open_shards(info.file_instructions)
        counts = [len(shard) for shard in self._shards]
        self._starts = np.array([0, *itertools.accumulate(counts)])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        records = np.empty(len(indices), object)
        for i, (shard, index) in enumerate(zip(shards, indices, strict=True)):
            records[i] = self._shards[shard][int(index - self._starts[shard])]
        return records, np.full(len(indices), NO_LABEL, np.int32)

    def decode(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        example = self._features.deserialize_example(record)
        if self._label_key:
            label = tf.cast(example[self._label_key], tf.int32)
        return _set_rgb(example[self._image_key]), label

    def describe(self, index: int) -> str:
        """See `Source`."""
        return f"record {index} of {self.name}"


class _Shard(Protocol):
    """Random access to records of one file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


class TFRecordShard:
    """Random access to part of a TFRecord file."""

    # A record is: length (8 bytes), its checksum (4), the data, their checksum (4).
    _HEADER, _FOOTER = 12, 4

    def __init__(self, path: str, *, skip: int, take: int) -> None:
        """Finds the offsets of records skip, ..., skip + take - 1."""
        self._path = path
        self._offsets = np.empty(take, np.int64)
        self._lengths = np.empty(take, np.int64)
        position = 0
        with open(path, "rb") as file:
            for i in range(skip + take):
                file.seek(position)
                header = file.read(8)
                if len(header) < 8:
                    raise DataError(f"file {path}: ends before record {i}")
                (length,) = struct.unpack("<Q", header)
                if i >= skip:
                    self._offsets[i - skip] = position + self._HEADER
                    self._lengths[i - skip] = length
                position += self._HEADER + length + self._FOOTER
        if position > os.path.getsize(path):
            raise DataError(f"file {path}: is cut off in its last record")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> bytes:
        with open(self._path, "rb", buffering=0) as file:
            return os.pread(
                file.fileno(), int(self._lengths[index]), int(self._offsets[index])
            )


class _ArrayRecordShard:
    """Random access to part of an ArrayRecord file."""

    def __init__(self, path: str, *, skip: int, take: int) -> None:
        from array_record.python import array_record_data_source

        self._records = array_record_data_source.ArrayRecordDataSource(path)
        self._skip, self._take = skip, take

    def __len__(self) -> int:
        return self._take

    def __getitem__(self, index: int) -> bytes:
        return self._records[self._skip + index]


def _open_shards(file_instructions: Sequence[Any]) -> list[_Shard]:
    shards: list[_Shard] = []
    for instruction in file_instructions:
        path = os.fspath(instruction.filename)
        if "://" in path or path.startswith("/gs/"):
            raise DataError(
                f"file {path}: records are read at random, which needs a local or "
                "mounted path (gcsfuse for a bucket)"
            )
        if not os.path.exists(path):
            raise DataError(f"file {path}: is missing from the prepared dataset")
        kind = _ArrayRecordShard if ".array_record" in path else TFRecordShard
        shards.append(kind(path, skip=instruction.skip, take=instruction.take))
    return shards


def _open_npz(path: str) -> ArraySource:
    if not os.path.exists(path):
        raise DataError(f"dataset npz:{path}: no such file")
    with np.load(path) as arrays:
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
      dataset: a TFDS name; 'folder:PATH'; 'npz:PATH' with arrays `images` and
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
        return FolderSource(argument, split=split)
    if kind == "npz":
        return _open_npz(argument.replace("{split}", split))
    if kind == "synthetic":
        return SyntheticSource(num_examples=1_281_167, image_size=int(argument or 224))
    if dataset == "photographs":
        if split not in photographs.SPLITS:
            raise DataError(
                f"split {split!r} of photographs: must be one of "
                f"{', '.join(photographs.SPLITS)}"
            )
        images, labels = photographs.load(split)
        return ArraySource(images, labels, name=f"photographs/{split}")
    return TFDSSource(
        dataset,
        data_dir=data_dir,
        split=split,
        image_key=image_key,
        label_key=label_key,
    )
