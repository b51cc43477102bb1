"""What a step reads and draws: images, crops and uniform numbers, as NumPy arrays."""

import dataclasses

import numpy as np

from simclr_jax.data.sampling import draws, order
from simclr_jax.data.sampling.balanced import BalancedOrder
from simclr_jax.data.sources.base import Source
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class StepSampler:
    """Images and draws of this host's slice of any step.

    Attributes:
      source: what is read.
      composition: of the views.
      seed: of order and draws.
      batch_size: images in the global batch.
      block_size: images that are read together; see `order.batch_indices`.
      num_views: V.
      host_slice: of the global batch.
      balanced: the order, where all classes are to be equally frequent.
    """

    source: Source
    composition: Composition
    seed: int
    batch_size: int
    block_size: int
    num_views: int
    host_slice: slice
    balanced: BalancedOrder | None = dataclasses.field(default=None, kw_only=True)

    @property
    def size(self) -> int:
        """Images in this host's slice, b."""
        return self.host_slice.stop - self.host_slice.start

    def check(self) -> None:
        """Raises DataError if the dataset is smaller than a batch."""
        usable = self.source.num_examples // self.block_size * self.block_size
        if usable < self.batch_size:
            blocks = f" in blocks of {self.block_size}" if self.block_size > 1 else ""
            raise DataError(
                f"batch_size={self.batch_size}: {self.source.name} has only "
                f"{self.source.num_examples} images{blocks}, and a batch holds no "
                "image twice"
            )

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(images [b], their epochs [b]), int64."""
        if self.balanced is not None:
            indices, epochs = self.balanced.batch_indices(
                step, seed=self.seed, batch_size=self.batch_size
            )
        else:
            indices, epochs = order.batch_indices(
                step,
                seed=self.seed,
                num_examples=self.source.num_examples,
                batch_size=self.batch_size,
                block_size=self.block_size,
            )
        return indices[self.host_slice], epochs[self.host_slice]

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images [b], crops, uniform numbers float32 [b, V, D]).

        Crops are boxes int32 [b, V, 4] in pixels. For image files, whose sizes are only
        known once they are read, they are the keys uint32 [b, V, 2] of the boxes.
        """
        indices, epochs = self.indices(int(step))
        key = order.view_keys(
            indices.astype(np.uint32),
            epochs.astype(np.uint32),
            seed=self.seed,
            num_views=self.num_views,
        )
        uniform = draws.view_draws(key, self.composition.operations)
        if self.source.encoded:
            return indices, np.stack(key, axis=-1), uniform
        assert self.source.image_shape is not None
        boxes = self.composition.draw_boxes(key, self.source.image_shape)
        return indices, boxes, uniform


def slice_of_host(batch_size: int, host_index: int, num_hosts: int) -> slice:
    """A host's contiguous part of a global batch."""
    if batch_size % num_hosts:
        raise ValueError(f"batch_size={batch_size}: not divisible by {num_hosts} hosts")
    size = batch_size // num_hosts
    return slice(host_index * size, (host_index + 1) * size)


def chunk_size(size: int, limit: int) -> int:
    """The largest divisor of a host's batch `size` up to a limit."""
    return next(d for d in range(min(size, limit), 0, -1) if size % d == 0)
