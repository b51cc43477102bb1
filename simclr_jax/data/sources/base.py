"""What a source of images is.

A source answers two questions. `read(indices)` fetches raw records by number, in
Python and at random; `unpack(record, label)` finds the image in one, inside the
TensorFlow graph: as a JPEG or PNG file, or as pixels where all images have one size.
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
