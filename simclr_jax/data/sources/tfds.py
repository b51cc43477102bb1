"""Datasets that TensorFlow Datasets has prepared, read at random."""

import os
from typing import Any

import numpy as np

from simclr_jax.data.sources import kept, shards, storage
from simclr_jax.data.sources.base import NO_LABEL
from simclr_jax.data.sources.listings import Listing
from simclr_jax.data.tf_cpu import tf
from simclr_jax.errors import DataError, NotPrepared, first_line


class TFDSSource:
    """A dataset that TensorFlow Datasets has prepared, on a disk or a store.

    Records are read in any order, neighbours in a shard together; see `shards.py`.
    """

    def __init__(
        self,
        dataset: str,
        *,
        data_dir: str | None,
        split: str,
        image_key: str = "image",
        label_key: str = "label",
        sharing: kept.Sharing = kept.ALONE,
    ) -> None:
        """Opens a prepared dataset; nothing is downloaded.

        Args:
          dataset: TFDS name, with '/config' and ':version' where wanted.
          data_dir: where it was prepared; TFDS's default when None.
          split: a split or slice of one, such as 'train[:90%]', or several, as in
            'train+validation'.
          image_key: the feature with the image.
          label_key: the feature with the class label; may be absent.
          sharing: the processes that open it too, and may share the search for records.

        Raises:
          NotPrepared: the dataset is not there.
          DataError: the split or image feature is not there.
        """
        # Imported here: only this source needs it, and it takes a while.
        import tensorflow_datasets as tfds

        self.name = f"{dataset}/{split}"
        builder = _builder(dataset, data_dir or tfds.core.constants.DATA_DIR)
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
        if not self.num_examples:
            raise DataError(f"split {split!r} of {dataset}: holds no image")
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
        self._label_names = getattr(label_feature, "names", None)
        self._entries = {"version": str(builder.version)}
        for part in parts:
            size = builder.info.splits[part].num_bytes
            self._entries[f"split {part}"] = f"{size} bytes"
        for file in info.file_instructions:
            name = os.path.basename(os.fspath(file.filename))
            found = f"{file.take} from {file.skip} on of {file.examples_in_shard}"
            before = self._entries.get(name)
            self._entries[name] = f"{before}, {found}" if before else found
        self._records = shards.open_records(
            info.file_instructions, what=self.name, sharing=sharing
        )

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return self._records.read(indices), np.full(len(indices), NO_LABEL, np.int32)

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

    def listing(self) -> Listing:
        """See `Source`: the version, and the shards and their numbers of records."""
        names = list(self._label_names) if self._label_names else None
        return Listing(
            self.num_examples, self.num_classes, names, "shard", self._entries
        )


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


def _builder(dataset: str, where: str) -> Any:
    """TFDS's description of a prepared dataset.

    Raises:
      NotPrepared: it is not there.
      DataError: the folder cannot be read.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    folder = storage.expanded(where)
    storage.check_bucket(folder)
    try:
        return read_only_builder.builder_from_files(dataset, data_dir=folder)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise NotPrepared(
            f"data.dataset={dataset!r}: TFDS has no prepared copy under "
            f"data.data_dir={where!r}; prepare one with `tfds build "
            f"{dataset.split(':')[0]} --data_dir={where}`"
        ) from error
    except Exception as error:  # stores' libraries have their own
        raise DataError(
            f"data.data_dir={where!r}: cannot be read ({first_line(error)})"
        ) from error
