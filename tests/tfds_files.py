"""Small datasets as TensorFlow Datasets prepares them."""

import json

import numpy as np
import pytest

from simclr_jax.data.tf_cpu import tf

SHARDS = (5, 3, 4)


def _features(shape, label):
    image = {
        "image": {
            "dtype": "uint8",
            "encodingFormat": "png",
            "shape": {"dimensions": [str(size) for size in shape]},
        },
        "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    }
    features = {"image": image}
    if label:
        features["label"] = {
            "classLabel": {"numClasses": "10"},
            "pythonClassName": (
                "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
            ),
        }
    return {
        "featuresDict": {"features": features},
        "pythonClassName": (
            "tensorflow_datasets.core.features.features_dict.FeaturesDict"
        ),
    }


def _info(name, file_format, shards):
    return {
        "description": "Noise.",
        "fileFormat": file_format,
        "moduleName": "__main__",
        "name": name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": "train",
                "numBytes": "1000",
                "shardLengths": [str(length) for length in shards],
            }
        ],
        "version": "1.0.0",
    }


def _example(image, label):
    feature = {
        "image": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])
        )
    }
    if label is not None:
        feature["label"] = tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
        )
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def _write_tfrecord(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def _write_array_record(path, records):
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def prepare(
    data_dir,
    *,
    name="noise",
    shards=SHARDS,
    channels=3,
    label=True,
    file_format="tfrecord",
    said_size=(6, 7),
):
    """Writes a dataset as TFDS prepares it; returns its folder and images.

    They have 6 x 7 pixels; `said_size` is what the dataset says, -1 for any.
    """
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(
        json.dumps(_features((*said_size, channels), label))
    )
    info = _info(name, file_format, shards)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    shape = (sum(shards), 6, 7, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    records = [
        _example(image, number % 10 if label else None)
        for number, image in enumerate(images)
    ]
    write = _write_tfrecord if file_format == "tfrecord" else _write_array_record
    start = 0
    for shard, length in enumerate(shards):
        file = f"{name}-train.{file_format}-{shard:05}-of-{len(shards):05}"
        write(folder / file, records[start : start + length])
        start += length
    return folder, images


def prepare_labelled(data_dir, name, splits, *, num_classes):
    """Writes a dataset with labels in TFDS's own encoding.

    Args:
      data_dir: where TFDS looks for it.
      name: TFDS name, with a config after '/' where it has some.
      splits: by name, (images uint8 [N, H, W, 3], labels). Labels are integers [N], or
        for each image two lists of them, as VOC's `labels` and `labels_no_difficult`.
      num_classes: of the labels.
    """
    import tensorflow_datasets as tfds

    one = tfds.features.ClassLabel(num_classes=num_classes)
    several = not isinstance(next(iter(splits.values()))[1], np.ndarray)
    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    keys = ("labels", "labels_no_difficult") if several else ("label",)
    for key in keys:
        features[key] = tfds.features.Sequence(one) if several else one
    features = tfds.features.FeaturesDict(features)
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    features.save_config(folder)
    base, _, config = name.partition("/")
    info = _info(base, "tfrecord", [])
    if config:
        info["configName"] = config
    template = info["splits"][0]
    info["splits"] = [
        {**template, "name": split, "shardLengths": [str(len(images))]}
        for split, (images, _) in splits.items()
    ]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for split, (images, labels) in splits.items():
        records = []
        for image, label in zip(images, labels, strict=True):
            values = label if several else (int(label),)
            example = {"image": image, **dict(zip(keys, values, strict=True))}
            records.append(features.serialize_example(features.encode_example(example)))
        _write_tfrecord(folder / f"{base}-{split}.tfrecord-00000-of-00001", records)
