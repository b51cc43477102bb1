"""Datasets that TensorFlow Datasets has prepared, read at random."""

import functools
import itertools
import os
import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from simclr_jax.data.sources import storage
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError, NotPrepared


class TFDSSource:
    """A dataset that TensorFlow Datasets has prepared on a local or mounted disk.

    Records are read in any order: through an index of offsets, built at start from
    TFRecord shards (one small read per record), or through ArrayRecord's index.
    Neighbours in a TFRecord shard are read together.
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
          split: a split or slice of one, such as 'train[:90%]', or several, as in
            'train+validation'.
          image_key: the feature with the image.
          label_key: the feature with the class label; may be absent.

        Raises:
          NotPrepared: the dataset is not there.
          DataError: the split or image feature is not there.
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
            raise NotPrepared(
                f"data.dataset={dataset!r}: TFDS has no prepared copy under "
                f"data.data_dir={where!r}; prepare one with `tfds build "
                f"{dataset.split(':')[0]} --data_dir={where}`"
            ) from error
        parts = [part.split("[")[0] for part in split.split("+")]
        if not set(parts) <= set(builder.info.splits):
            raise DataError(
                f"split {split!r} of {dataset}: must be one of "
                f"{', '.join(builder.info.splits)}, a slice of it, or several joined "
                "by '+'"
            )
        try:
            info = builder.info.splits[split]
        except ValueError as error:
            raise DataError(
                f"split {split!r} of {dataset}: is no valid slice; write it like "
                "'train[:90%]' or 'train[1000:2000]'"
            ) from error
        features = builder.info.features
        if image_key not in features:
            raise DataError(
                f"data.image_key={image_key!r}: {dataset} has the features "
                f"{', '.join(features)}"
            )
        self.num_examples = info.num_examples
        label_feature = dict(features).get(label_key)
        # The other features that have classes are lists of them.
        self.num_classes: int | None = None
        if isinstance(label_feature, tfds.features.ClassLabel):
            self.num_classes = label_feature.num_classes
        self.class_names: list[str] | None = None
        self.labels: np.ndarray | None = None
        self.encoded = True
        height, width = (features[image_key].shape or (None, None))[:2]
        self.image_shape = (height, width) if height and width else None
        self._image_key = image_key
        self._label_key = label_key if self.num_classes else None
        self._features = features
        self._decoders = {image_key: tfds.decode.SkipDecoding()}
        self._shards = _open_shards(info.file_instructions)
        counts = [len(shard) for shard in self._shards]
        self._starts = np.array([0, *itertools.accumulate(counts)])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        records = np.empty(len(indices), object)
        for shard in np.unique(shards):
            chosen = shards == shard
            within = indices[chosen] - self._starts[shard]
            records[chosen] = self._shards[shard].read(within)
        return records, np.full(len(indices), NO_LABEL, np.int32)

    def unpack(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`."""
        example = self._features.deserialize_example(record, decoders=self._decoders)
        if self._label_key:
            label = tf.cast(example[self._label_key], tf.int32)
        return example[self._image_key], label

    def describe(self, index: int) -> str:
        """See `Source`."""
        return f"record {index} of {self.name}"


class MultiLabelSource(TFDSSource):
    """A prepared dataset whose images may each show several classes.

    `unpack` returns labels int32 [num_classes]: 1 for classes in the image, 0 for
    classes that are not, -1 for classes that do not count.
    """

    def __init__(
        self,
        dataset: str,
        *,
        data_dir: str | None,
        split: str,
        label_key: str,
        certain_key: str,
    ) -> None:
        """Opens a prepared dataset; see `TFDSSource`.

        Args:
          dataset: TFDS name.
          data_dir: where it was prepared.
          split: as for `TFDSSource`.
          label_key: the feature with the list of an image's classes.
          certain_key: the feature with the classes that count; classes only in
            `label_key` are -1.

        Raises:
          NotPrepared, DataError: as `TFDSSource`, or a feature is no list of classes.
        """
        super().__init__(dataset, data_dir=data_dir, split=split, label_key=label_key)
        import tensorflow_datasets as tfds

        for key in (label_key, certain_key):
            feature = dict(self._features).get(key)
            inner = getattr(feature, "feature", None)
            if not isinstance(inner, tfds.features.ClassLabel):
                raise DataError(
                    f"dataset {self.name}: its feature {key!r} must be a list of "
                    "classes"
                )
            self.num_classes = inner.num_classes
        self._list_keys = label_key, certain_key

    def unpack(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Source`; labels are those of the class."""
        example = self._features.deserialize_example(record, decoders=self._decoders)
        named, certain = (
            tf.reduce_max(tf.one_hot(example[key], self.num_classes, dtype=tf.int32), 0)
            for key in self._list_keys
        )
        # Of no classes the maximum is the lowest integer.
        named, certain = tf.maximum(named, 0), tf.maximum(certain, 0)
        return example[self._image_key], tf.where(certain > 0, 1, -named)


class _Shard(Protocol):
    """Random access to records of one file."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray: ...


class TFRecordShard:
    """Random access to part of a TFRecord file."""

    # A record is: length (8 bytes), its checksum (4), the data, their checksum (4).
    _HEADER, _FOOTER = 12, 4

    def __init__(self, path: str, *, skip: int, take: int) -> None:
        """Finds the offsets of records skip, ..., skip + take - 1."""
        self._path = path
        self._offsets = np.empty(take, np.int64)
        self._lengths = np.empty(take, np.int64)
        storage.retried(path, functools.partial(self._find, skip, take))

    def _find(self, skip: int, take: int) -> None:
        path = self._path
        position, size = 0, os.path.getsize(path)
        with open(path, "rb") as file:
            for i in range(skip + take):
                file.seek(position)
                header = file.read(8)
                length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
                end = position + self._HEADER + length + self._FOOTER
                if end > size:
                    raise DataError(
                        f"file {path}: ends within record {i} of {skip + take}, so it "
                        "is damaged or no TFRecord file"
                    )
                if i >= skip:
                    self._offsets[i - skip] = position + self._HEADER
                    self._lengths[i - skip] = length
                position = end

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Some records, object [n]."""
        files = np.zeros(len(indices), np.int64)
        return storage.read_ranges(
            [self._path], files, self._offsets[indices], self._lengths[indices]
        )


class _ArrayRecordShard:
    """Random access to part of an ArrayRecord file."""

    def __init__(self, path: str, *, skip: int, take: int) -> None:
        from array_record.python import array_record_data_source

        self._records = array_record_data_source.ArrayRecordDataSource(path)
        self._skip, self._take = skip, take

    def __len__(self) -> int:
        return self._take

    def read(self, indices: np.ndarray) -> np.ndarray:
        records = np.empty(len(indices), object)
        for i, index in enumerate(indices):
            records[i] = self._records[self._skip + int(index)]
        return records


def _open_shards(file_instructions: Sequence[Any]) -> list[_Shard]:
    shards: list[_Shard] = []
    for instruction in file_instructions:
        path = os.fspath(instruction.filename)
        if "://" in path or path.startswith("/gs/"):
            raise DataError(
                f"file {path}: has no index of its records, which reading from a store "
                "needs; prepare the dataset with `python -m simclr_jax.prepare`, which "
                "writes an index, or mount the bucket (gcsfuse)"
            )
        if not os.path.exists(path):
            raise DataError(f"file {path}: is missing from the prepared dataset")
        kind = _ArrayRecordShard if ".array_record" in path else TFRecordShard
        shards.append(kind(path, skip=instruction.skip, take=instruction.take))
    return shards
