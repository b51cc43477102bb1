"""What a source of images is.

A source answers two questions. `read(indices)` fetches raw records by number, in
Python and at random; `decode(record, label)` turns one into pixels inside the
TensorFlow graph.
"""

from typing import Protocol

import numpy as np

from simclr_jax.data.tf_cpu import tf

NO_LABEL = -1


class Source(Protocol):
    """Images by number.

    Attributes:
      name: for messages.
      num_examples: how many.
      num_classes: labels are in [0, num_classes); None for unlabelled images.
      class_names: where the numbers come from names that another split may number
        otherwise; None elsewhere.
      record_spec: of the records of one `read`, leading axis first.
    """

    name: str
    num_examples: int
    num_classes: int | None
    class_names: list[str] | None
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


def decode_rgb(content: tf.Tensor) -> tf.Tensor:
    """JPEG or PNG bytes to uint8 [H, W, 3]; grey becomes three equal channels."""
    # This operation reads PNG too. Its default for JPEG is the fast, coarse transform,
    # off by up to 3 levels from every other library.
    image = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(image, (None, None, 3))
