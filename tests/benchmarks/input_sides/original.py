"""The recipe of google-research/simclr, TensorFlow 2 version, in its TensorFlow ops.

Written anew from what it does: each view is drawn from the whole image as float32; ops
that are applied at random are branches of `tf.cond`; the order of the colour ops is a
shuffled list. Its blur, which it leaves to the accelerator, works on batches: one sigma
for all images of a view, every image blurred, then a coin for each keeps the blurred
one or the other.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# TensorFlow's default, with which the blur takes a third of the time.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"

import tensorflow as tf

from input_sides import task as tasks
from input_sides.task import Batches, Task

Image = Any
_ATTEMPTS = 100
_LEAST_COVERED = 0.1


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return options


def _at_random(
    probability: float, change: Callable[[Image], Image], image: Image
) -> Image:
    chosen = tf.random.uniform([]) < probability
    return tf.cond(chosen, lambda: change(image), lambda: image)


def _crop(image: Image, side: int) -> Image:
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        min_object_covered=_LEAST_COVERED,
        aspect_ratio_range=tasks.RATIO,
        area_range=tasks.AREA,
        max_attempts=_ATTEMPTS,
        use_image_if_no_bounding_boxes=True,
    )
    crop = tf.image.crop_to_bounding_box(image, begin[0], begin[1], size[0], size[1])
    return tf.image.resize([crop], [side, side], method="bicubic")[0]


def _jitter(image: Image, strength: float) -> Image:
    spread, hue = tasks.BRIGHTNESS * strength, tasks.HUE * strength
    low, high = max(0.0, 1.0 - spread), 1.0 + spread

    def apply(number: tf.Tensor, image: Image) -> Image:
        return tf.switch_case(
            number,
            [
                lambda: image * tf.random.uniform([], low, high),
                lambda: tf.image.random_contrast(image, 1.0 - spread, high),
                lambda: tf.image.random_saturation(image, 1.0 - spread, high),
                lambda: tf.image.random_hue(image, hue),
            ],
        )

    order = tf.random.shuffle([0, 1, 2, 3])
    for place in range(4):
        image = tf.clip_by_value(apply(order[place], image), 0.0, 1.0)
    return image


def _gray(image: Image) -> Image:
    return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])


def _view(image: Image, task: Task) -> Image:
    image = _crop(image, task.side)
    image = tf.image.random_flip_left_right(image)
    image = _at_random(
        tasks.JITTER_PROBABILITY, lambda x: _jitter(x, task.strength), image
    )
    image = _at_random(tasks.GRAY_PROBABILITY, _gray, image)
    image = tf.reshape(image, [task.side, task.side, 3])
    return tf.clip_by_value(image, 0.0, 1.0)


def _blur(images: Image, taps: int) -> Image:
    sigma = tf.random.uniform([], *tasks.SIGMA)
    offsets = tf.range(-(taps // 2), taps // 2 + 1, dtype=tf.float32)
    weights = tf.exp(-(offsets**2) / (2.0 * sigma**2))
    weights = weights / tf.reduce_sum(weights)
    for shape in ([1, taps, 1, 1], [taps, 1, 1, 1]):
        kernel = tf.tile(tf.reshape(weights, shape), [1, 1, 3, 1])
        images = tf.nn.depthwise_conv2d(images, kernel, [1, 1, 1, 1], "SAME")
    return images


def _batch_blur(images: Image, taps: int) -> Image:
    chosen = tf.random.uniform([tf.shape(images)[0], 1, 1, 1]) < tasks.BLUR_PROBABILITY
    images = tf.where(chosen, _blur(images, taps), images)
    return tf.clip_by_value(images, 0.0, 1.0)


def batches(task: Task, *, blur: bool) -> Batches:
    """The two views lie behind each other in the channels, as there."""
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def views(record: tf.Tensor) -> Image:
        image = tf.io.decode_jpeg(record, channels=3) if task.are_files else record
        image = tf.image.convert_image_dtype(image, tf.float32)
        return tf.concat([_view(image, task) for _ in range(2)], -1)

    def blurred(images: Image) -> Image:
        halves = tf.split(images, 2, axis=-1)
        return tf.concat([_batch_blur(half, task.taps) for half in halves], -1)

    dataset = tf.data.Dataset.from_tensor_slices(np.array(task.records)).repeat()
    dataset = dataset.map(views, num_parallel_calls=1).batch(task.batch_size)
    if blur:
        dataset = dataset.map(blurred, num_parallel_calls=1)
    for images in dataset.with_options(_options()).as_numpy_iterator():
        shape = (task.batch_size, task.side, task.side, 2, 3)
        yield images.reshape(shape).transpose(0, 3, 1, 2, 4)


def decoded(task: Task) -> Batches:
    """Decodes with the exact transform and keeps one pixel: what nothing is below."""
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def decode(record: tf.Tensor) -> Image:
        return tf.io.decode_jpeg(record, channels=3, dct_method="INTEGER_ACCURATE")

    dataset = tf.data.Dataset.from_tensor_slices(np.array(task.records)).repeat()
    dataset = dataset.map(lambda record: decode(record)[0, 0], num_parallel_calls=1)
    dataset = dataset.batch(task.batch_size).with_options(_options())
    return dataset.as_numpy_iterator()
