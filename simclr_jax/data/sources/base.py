"""The protocol of sources of images.

`read(indices)` fetches records by number, in Python, in any order: JPEG or PNG files,
or pixels where all images have one size. Only sources whose records contain more than
the image have `unpack`, which extracts it inside a TensorFlow graph.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from simclr_jax.data.sources.listings import Listing

NO_LABEL = -1

Batch = dict[str, np.ndarray]

# (record, label) -> (image, int32 label), tensors of TensorFlow. The image is the
# bytes of a file if the source is `encoded`, else uint8 [H, W, 3]. For a chunk of
# records of pixels the result is a chunk.
Unpack = Callable[[Any, Any], tuple[Any, Any]]


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
      encoded: whether records hold image files instead of pixels.
      image_shape: (height, width) of all images; None if sizes differ or are unknown.
        Always known for pixels.
      unpack: extracts image and label from a record; None where the record is the
        image.
    """

    name: str
    num_examples: int
    num_classes: int | None
    class_names: list[str] | None
    encoded: bool
    image_shape: tuple[int, int] | None

    @property
    def labels(self) -> np.ndarray | None:
        """See above."""

    @property
    def unpack(self) -> Unpack | None:
        """See above."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fetches (records, labels int32 [n]); called from many threads.

        Records are object [n] of bytes, or uint8 [n, H, W, 3].
        """
        ...

    def describe(self, index: int) -> str:
        """Names one record for a message."""
        ...

    def listing(self) -> Listing:
        """What the dataset consists of; reads no image that is not in memory."""
        ...
