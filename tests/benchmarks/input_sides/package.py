"""This package's pipeline, as training opens it, from records in memory."""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from input_sides.task import Batches, Task

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))

from simclr_jax.configs import base
from simclr_jax.data.sources import arrays, reading, registry
from simclr_jax.data.sources import base as source_base
from simclr_jax.data.tf_cpu import tf
from simclr_jax.training import input_pipeline


class _Files:
    """JPEG files in memory."""

    name = "memory"
    num_classes = None
    class_names = None
    labels = None
    encoded = True
    image_shape = None

    def __init__(self, contents: Any) -> None:
        self._contents = np.array(contents, object)
        self.num_examples = len(contents)
        self.record_spec = tf.TensorSpec((None,), tf.string)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = np.full(len(indices), source_base.NO_LABEL, np.int32)
        return self._contents[indices], labels

    def unpack(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return record, label

    def describe(self, index: int) -> str:
        return f"file {index}"


def batches(task: Task, settings: Mapping[str, Any]) -> Batches:
    """Batches by the config of ImageNet, changed for the task and by `settings`."""
    config = base.get_config()
    config.image_size = task.side
    config.augment.color_jitter.strength = task.strength
    if not task.blur:
        kept = [name for name in config.augment.operations if name != "blur"]
        config.augment.operations = tuple(kept)
    config.update_from_flattened_dict(settings)
    source: source_base.Source
    if task.are_files:
        source = _Files(task.records)
    else:
        source = arrays.ArraySource(np.stack(task.records), name="memory")
    config.batch.batch_size = task.batch_size
    config.schedule.train_steps = 2**31
    config.data.threads = 1
    for batch in input_pipeline.local_batches(config, source, start_step=0):
        yield batch["images"]


def write_cifar(folder: str, num_images: int, file: pathlib.Path) -> None:
    """Decodes the first images of CIFAR-10, prepared by TFDS, into an .npy file."""
    source = registry.open_source("cifar10", split="train", data_dir=folder)
    encoded, labels = source.read(np.arange(num_images))
    images = [
        reading.decode_record(source, record, label)[0].numpy()
        for record, label in zip(encoded, labels, strict=True)
    ]
    np.save(file, np.stack(images))
