"""The protocol of sources of images.

`read(indices)` fetches raw records by number, in Python, in any order.
`unpack(record, label)` extracts the image from a record, inside the TensorFlow graph: a
JPEG or PNG file, or pixels where all images have one size.
"""

from typing import Protocol

import numpy as np

from simclr_jax.data.tf_cpu import tf

NO_LABEL = -1


class Source(Protocol):
    """Images by number.

    Attributes:
      name: for messages.
      num_examples: number of images.
      num_classes: labels are in [0, num_classes); None for unlabelled images.
      class_names: if the numbers come from names, which another split may number
        differently; else None.
      labels: int32 [num_examples], -1 for images without one; None if they are stored
        in the records, and `unpack` extracts them.
      record_spec: of the records of one `read`, leading axis first.
      encoded: whether records hold image files instead of pixels.
      image_shape: (height, width) of all images; None if sizes differ or are unknown.
        Always known for pixels.
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

        The image is the bytes of a file if `encoded`, else uint8 [H, W, 3]. For a chunk
        of records of pixels the result is a chunk.
        """
        ...

    def describe(self, index: int) -> str:
        """Names one record for a message."""
        ...
