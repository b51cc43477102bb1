"""Parts of a labelled dataset, such as 1 % and 10 % of the labels for fine-tuning.

ImageNet's official subsets are datasets of their own (`imagenet2012_subset/1pct` and
`10pct` in TFDS); elsewhere a subset is drawn here.
"""

import logging
import math
from typing import Any

import numpy as np

from simclr_jax.data.sampling import order
from simclr_jax.data.sources import bad_records
from simclr_jax.data.sources.base import NO_LABEL, Source, Unpack
from simclr_jax.data.sources.listings import Listing
from simclr_jax.errors import BadRecord, DataError

_LOG = logging.getLogger(__name__)


class Subset:
    """Some images of another source, with its labels or other ones.

    Attributes beside those of `Source`:
      of: the other source.
      indices: the images' numbers in it.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        *,
        name: str,
        new_labels: np.ndarray | None = None,
    ) -> None:
        """Wraps a source.

        Args:
          source: has the images.
          indices: their numbers in it, in the order of the subset.
          name: for messages.
          new_labels: int32, one for each of `indices`; the source's when None.
        """
        self.name = name
        self.num_examples = len(indices)
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.encoded = source.encoded
        self.image_shape = source.image_shape
        self.indices = indices
        self.labels = new_labels
        if new_labels is None and source.labels is not None:
            self.labels = source.labels[indices]
        self.unpack = source.unpack and self._with_label(source.unpack)
        self.of = source

    @property
    def bad_records(self) -> tuple[BadRecord, ...]:
        """Those of the other source that are in the subset, with their numbers here."""
        places = {index: place for place, index in enumerate(self.indices.tolist())}
        return tuple(
            BadRecord(places[error.index], error.name, error.reason)
            for error in bad_records.of(self.of)
            if error.index in places
        )

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Source`."""
        records, labels = self.of.read(self.indices[indices])
        return records, labels if self.labels is None else self.labels[indices]

    def _with_label(self, unpack: Unpack) -> Unpack:
        """Replaces labels that are stored in records by those of the subset."""

        def unpack_image(record: Any, label: Any) -> tuple[Any, Any]:
            image, stored_label = unpack(record, label)
            return image, stored_label if self.labels is None else label

        return unpack_image

    def describe(self, index: int) -> str:
        """See `Source`."""
        return self.of.describe(int(self.indices[index]))

    def listing(self) -> Listing:
        """See `Source`; that of the whole, of which the config draws the subset."""
        return self.of.listing()


def labels(source: Source) -> np.ndarray:
    """The labels of all images, int32 [N]; decodes none.

    Raises:
      DataError: a record with a label cannot be read.
    """
    if source.labels is not None:
        return source.labels
    # Imported here, since it needs TensorFlow, as do sources that store labels so.
    from simclr_jax.data.sources import reading

    batches = reading.label_batches(source)
    return np.concatenate([batch["labels"] for batch in batches])


def labelled(source: Source) -> Source:
    """The images that have a label; the source itself where all have one.

    Labels that are stored in records are taken to be there.
    """
    if source.labels is None or (source.labels >= 0).all():
        return source
    chosen = np.flatnonzero(source.labels >= 0)
    _LOG.info(
        "%s: %d of %d images have no label and are left out",
        *(source.name, source.num_examples - len(chosen), source.num_examples),
    )
    return Subset(source, chosen, name=source.name)


def class_balanced(source: Source, fraction: float, *, seed: int) -> Source:
    """A random share of each class, at least one image of it; none without a label.

    The same images for the same seed, whatever the source; a larger fraction contains
    the images of a smaller one. Classes keep their proportions.

    Args:
      source: labelled.
      fraction: in (0, 1]; 1 gives the source itself.
      seed: of the draw.

    Raises:
      DataError: there are no labels.
    """
    if fraction == 1:
        return source
    indices = _chosen(source, labels(source), fraction, seed=seed)
    return Subset(source, indices, name=f"{100 * fraction:g} % of {source.name}")


def hide_labels(source: Source, fraction: float, *, seed: int) -> Source:
    """All images, with labels only for a share of each class.

    The images that `class_balanced` chooses keep their labels; the others have -1.
    """
    if fraction == 1:
        return source
    of_images = labels(source)
    visible = np.full_like(of_images, NO_LABEL)
    chosen = _chosen(source, of_images, fraction, seed=seed)
    visible[chosen] = of_images[chosen]
    everything = np.arange(source.num_examples)
    return Subset(source, everything, name=source.name, new_labels=visible)


def _chosen(
    source: Source, of_images: np.ndarray, fraction: float, *, seed: int
) -> np.ndarray:
    """Numbers of a share of each class, ascending."""
    if source.num_classes is None:
        raise DataError(f"dataset {source.name}: has no labels to take a share of")
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
    return np.sort(np.concatenate(chosen))
