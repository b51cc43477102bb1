"""Parts of a labelled dataset, such as the 1 and 10 % that fine-tuning is measured on.

ImageNet's official subsets are datasets of their own (`imagenet2012_subset/1pct` and
`10pct` in TFDS); elsewhere a subset is drawn here.
"""

import math

import numpy as np

from simclr_jax.data import order, pipeline
from simclr_jax.data.records import Source
from simclr_jax.errors import DataError


class Subset:
    """Some images of another source."""

    def __init__(self, source: Source, indices: np.ndarray, *, name: str) -> None:
        """Takes the numbers of the images in `source`, in the order of the subset."""
        self.name = name
        self.num_examples = len(indices)
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.record_spec = source.record_spec
        self.encoded = source.encoded
        self.image_shape = source.image_shape
        self.indices = indices
        self.unpack = source.unpack
        self._source = source

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        return self._source.read(self.indices[indices])

    def describe(self, index: int) -> str:
        """See `Source`."""
        return self._source.describe(int(self.indices[index]))


def labels(source: Source) -> np.ndarray:
    """The labels of all images, int32 [N]; reads every record and decodes none."""
    return np.concatenate(list(pipeline.label_batches(source)))


def class_balanced(source: Source, fraction: float, *, seed: int) -> Source:
    """A random share of each class, at least one image of it.

    The same images for the same seed, however they are read; a larger fraction holds
    those of a smaller one. Classes keep their proportions.

    Args:
      source: labelled.
      fraction: in (0, 1]; 1 gives the source itself.
      seed: of the draw.

    Raises:
      DataError: there are no labels, or an image has none.
    """
    if source.num_classes is None:
        raise DataError(
            f"dataset {source.name}: has no labels, of which a share could be taken"
        )
    if fraction == 1:
        return source
    of_images = labels(source)
    if of_images.min() < 0:
        index = int(np.argmin(of_images))
        raise DataError(f"{source.describe(index)}: has no label")
    ranks = order.permute(
        np.arange(source.num_examples),
        seed=seed,
        epoch=np.array(0),
        size=source.num_examples,
    )
    shuffled = np.argsort(ranks)
    chosen = [
        members[: math.ceil(fraction * len(members))]
        for number in range(source.num_classes)
        if len(members := shuffled[of_images[shuffled] == number])
    ]
    return Subset(
        source,
        np.sort(np.concatenate(chosen)),
        name=f"{100 * fraction:g} % of {source.name}",
    )
