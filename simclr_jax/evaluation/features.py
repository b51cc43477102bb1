"""Features of a whole dataset, computed on all devices."""

import logging
import time
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel

_LOG = logging.getLogger(__name__)
_SECS_BETWEEN_LINES = 20.0

# Prepared images [N, S, S, 3] in [0, 1] -> features [N, D] float32.
Encode = Callable[[jax.Array], jax.Array]


def pixels(images: jax.Array) -> jax.Array:
    """The features to beat: the pixels themselves, [N, S * S * 3]."""
    return images.reshape(len(images), -1)


def extract(
    encode: Encode,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    num_examples: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes every image once.

    Args:
      encode: what to compute; the batch is split over the mesh.
      batches: from `pipeline.eval_batches`: images, labels, mask.
      mesh: from `parallel.create_mesh`.
      num_examples: for the progress line.

    Returns:
      (features [N, D] float32, labels [N] int32), in the order of the dataset, without
      the entries that filled up the last batch.
    """
    encode = jax.jit(encode)
    parts, labels = [], []
    done, last_line = 0, time.monotonic()
    for batch in batches:
        images = parallel.shard_batch(mesh, {"images": batch["images"]})["images"]
        parts.append(np.asarray(encode(images))[batch["mask"]])
        labels.append(batch["labels"][batch["mask"]])
        done += len(labels[-1])
        if time.monotonic() - last_line > _SECS_BETWEEN_LINES:
            _LOG.info("encoded %d of %d images", done, num_examples)
            last_line = time.monotonic()
    return np.concatenate(parts), np.concatenate(labels)
