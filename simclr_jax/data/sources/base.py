"""What a source of images is.

A source answers two questions. `read(indices)` fetches raw records by number, in
Python and at random; `unpack(record, label)` finds the image in one, inside the
TensorFlow graph: as a JPEG or PNG file, or as pixels where all images have one size.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from simclr_jax.data.tf_cpu import tf

NO_LABEL = -1
# The default is the fast, coarse transform, off by up to 3 levels from every other
# library.
_DCT_METHOD = "INTEGER_ACCURATE"
# Pixels; twice the largest block that a JPEG codes as one.
_MARGIN = 32


class Source(Protocol):
    """Images by number.

    Attributes:
      name: for messages.
      num_examples: how many.
      num_classes: labels are in [0, num_classes); None for unlabelled images.
      class_names: where the numbers come from names that another split may number
        otherwise; None elsewhere.
      labels: int32 [num_examples], -1 for images without one; None where they lie in
        the records, and `unpack` finds them.
      record_spec: of the records of one `read`, leading axis first.
      encoded: whether records hold image files, and not pixels.
      image_shape: (height, width) that all images are known to have; None where sizes
        differ or nobody knows. Always known of pixels.
    """

    name: str
    num_examples: int
    num_classes: int | None
    class_names: list[str] | None
    record_spec: tf.TensorSpec
    encoded: bool
    image_shape: tuple[int, int] | None

    @property
    def labels(self) -> np.ndarray | None:
        """See above."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fetches (records [n, ...], labels int32 [n]); called from many threads."""
        ...

    def unpack(
        self, record: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Turns one record into (image, int32 label), as graph operations.

        The image is the bytes of a file where `encoded`, and else uint8 [H, W, 3]. Of a
        chunk of records of pixels it is the chunk.
        """
        ...

    def describe(self, index: int) -> str:
        """Names one record for a message."""
        ...


def decode(
    source: Source, record: tf.Tensor, label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """One record as (uint8 [H, W, 3], int32 label), as graph operations."""
    image, label = source.unpack(record, label)
    return (decode_rgb(image) if source.encoded else image), label


def decode_rgb(content: tf.Tensor) -> tf.Tensor:
    """JPEG or PNG bytes to uint8 [H, W, 3]; grey becomes three equal channels."""
    # This operation reads PNG too.
    image = tf.io.decode_jpeg(content, channels=3, dct_method=_DCT_METHOD)
    return tf.ensure_shape(image, (None, None, 3))


def decode_crops(
    content: tf.Tensor, draw: Callable[[tf.Tensor], tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes no more of a file than its crops need.

    The pixels are those of the whole image: around a part of a JPEG a margin is decoded
    too, since its sides are interpolated from less.

    Args:
      content: bytes of a JPEG or PNG file.
      draw: shape [3] of the image -> boxes int32 [V, 4], (y, x, height, width).

    Returns:
      (uint8 [h, w, 3], boxes within it).
    """

    def part() -> tuple[tf.Tensor, tf.Tensor]:
        shape = tf.io.extract_jpeg_shape(content)
        boxes = draw(shape)
        y, x, height, width = tf.unstack(boxes, axis=1)
        top, bottom = tf.reduce_min(y), tf.reduce_max(y + height)
        left = tf.reduce_min(x) // _MARGIN * _MARGIN - _MARGIN
        right = -(-tf.reduce_max(x + width) // _MARGIN) * _MARGIN + _MARGIN
        left, right = tf.maximum(left, 0), tf.minimum(right, shape[1])
        window = tf.stack([top, left, bottom - top, right - left])
        image = tf.image.decode_and_crop_jpeg(
            content, window, channels=3, dct_method=_DCT_METHOD
        )
        return image, boxes - tf.stack([top, left, 0, 0])

    def whole() -> tuple[tf.Tensor, tf.Tensor]:
        image = decode_rgb(content)
        return image, draw(tf.shape(image))

    image, boxes = tf.cond(tf.io.is_jpeg(content), part, whole)
    return tf.ensure_shape(image, (None, None, 3)), boxes
