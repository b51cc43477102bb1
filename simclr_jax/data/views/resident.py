"""Batches computed entirely on an accelerator, which holds the dataset.

Images, their order and all draws except the pixels of noise equal those of
`pipeline.py`; the host has nothing to do. Everything is a function of (seed, step),
traced by JAX.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax.data.sampling import draws, order
from simclr_jax.data.views import device
from simclr_jax.data.views.composition import Composition


@dataclasses.dataclass(frozen=True)
class ResidentBatches:
    """Batches of a dataset on the device.

    Attributes:
      composition: of the views.
      seed: of order and draws.
      batch_size: images in the global batch.
      num_views: V.
      sharding: of the batch, on its leading axis.
      parts: as in `in_parts`.
    """

    composition: Composition
    seed: int
    batch_size: int
    num_views: int
    sharding: NamedSharding
    parts: int = 1

    def __call__(
        self, dataset: dict[str, jax.Array], step: jax.Array
    ) -> dict[str, jax.Array]:
        """The batch of a step.

        Args:
          dataset: `images` uint8 [N, H, W, 3] and `labels` int32 [N], whole on every
            device.
          step: int32 scalar.

        Returns:
          `images` uint8 [B, V, S, S, 3] and `labels` int32 [B], split over the devices.
        """
        images, labels = dataset["images"], dataset["labels"]
        height, width = images.shape[1:3]
        indices, epochs = self._indices(step, len(images))
        key = self._whole(
            order.view_keys(indices, epochs, seed=self.seed, num_views=self.num_views)
        )
        uniform = draws.view_draws(key, self.composition.operations)
        box_draws = self.composition.box_draws((height, width))
        if box_draws is None:
            whole_image = jnp.array([0, 0, height, width], jnp.int32)
            boxes = jnp.broadcast_to(whole_image, (*key.first.shape, 4))
        else:
            boxes = device.random_boxes(key, box_draws)
        boxes = self._whole(boxes)
        # Up to here every device computes the few numbers of the whole batch, so no
        # device waits for another; from here on each computes its own views.
        indices, uniform, boxes = (
            jax.lax.with_sharding_constraint(x, self.sharding)
            for x in (indices, uniform, boxes)
        )
        views = in_parts(self.composition, self.parts)
        return {
            "images": views(images[indices], uniform, boxes),
            "labels": labels[indices],
        }

    def _indices(
        self, step: jax.Array, num_examples: int
    ) -> tuple[jax.Array, jax.Array]:
        """`order.batch_indices` of single images, as uint32."""
        num_steps = order.steps_per_epoch(
            num_examples=num_examples, batch_size=self.batch_size
        )
        step = step.astype(jnp.uint32)
        epoch, step_in_epoch = step // num_steps, step % num_steps
        start = step_in_epoch * np.uint32(self.batch_size)
        positions = start + jnp.arange(self.batch_size, dtype=jnp.uint32)
        shuffle = order.Shuffle(seed=self.seed, epoch=epoch[None], size=num_examples)

        def outside(values: jax.Array) -> jax.Array:
            return jnp.any(values >= num_examples)

        def again(values: jax.Array) -> jax.Array:
            walked = shuffle.once(values, shuffle.keys)
            return jnp.where(values >= num_examples, walked, values)

        first = self._whole(shuffle.once(positions, shuffle.keys))
        epochs = jnp.broadcast_to(epoch, positions.shape)
        return self._whole(jax.lax.while_loop(outside, again, first)), epochs

    def _whole(self, arrays: Any) -> Any:
        """The arrays as a whole on every device."""
        whole = NamedSharding(self.sharding.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(arrays, whole)


def in_parts(composition: Composition, parts: int) -> device.Views:
    """A composition as a function of a batch, a part of it at a time.

    Args:
      composition: of the views.
      parts: image p belongs to part p mod `parts`, so that a device has its share of
        every part.

    Returns:
      views(images uint8, draws [B, V, D], boxes int32 [B, V, 4] or None) -> uint8
      [B, V, S, S, 3]. Images are [B, H, W, 3], or without boxes crops [B, V, S, S, 3].
    """
    one_part = device.compose(composition)

    def compute(part: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        images, uniform, boxes = part
        if boxes is not None:
            wanted = (*boxes.shape[:2], *images.shape[1:])
            images = jnp.broadcast_to(images[:, None], wanted)
            boxes = boxes.reshape(-1, 4)
        number = uniform.shape[0] * uniform.shape[1]
        result = one_part(
            images.reshape(number, *images.shape[2:]),
            uniform.reshape(number, uniform.shape[2]),
            boxes,
        )
        return result.reshape(*uniform.shape[:2], *result.shape[1:])

    def views(
        images: jax.Array, uniform: jax.Array, boxes: jax.Array | None
    ) -> jax.Array:
        if parts == 1:
            return compute((images, uniform, boxes))
        split = jax.tree.map(
            lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1),
            (images, uniform, boxes),
        )
        result = jax.lax.map(compute, split).swapaxes(0, 1)
        return result.reshape(-1, *result.shape[2:])

    return views
