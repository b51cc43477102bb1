"""Features of a whole dataset, computed on all devices."""

import logging
import time
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import parallel

_LOG = logging.getLogger(__name__)
_SECS_BETWEEN_LINES = 20.0

# Prepared images [N, S, S, 3] in [0, 1] -> features [N, D] float32. A pytree, so that
# its weights are arguments of compiled programs: constants cannot span processes.
Encode = jax.tree_util.Partial


@jax.tree_util.Partial
def pixels(images: jax.Array) -> jax.Array:
    """The pixels as features [N, S * S * 3]: a baseline."""
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
      encode: computes the features of a batch, which is split over the mesh.
      batches: from `pipeline.eval_batches`: images, labels, mask.
      mesh: from `parallel.create_mesh`.
      num_examples: N, the number of images.

    Returns:
      (features [N, D] float32, labels int32 [N] or [N, classes]), in the order of the
      dataset, without the padding of the last batch; the same on every process.
    """
    run = jax.jit(_encode, out_shardings=parallel.replicated(mesh))
    parts, labels = [], []
    done, last_line = 0, time.monotonic()
    for batch in batches:
        h, batch_labels, mask = map(
            np.asarray, run(encode, parallel.shard_batch(mesh, batch))
        )
        parts.append(h[mask])
        labels.append(batch_labels[mask])
        done += len(labels[-1])
        if time.monotonic() - last_line > _SECS_BETWEEN_LINES:
            _LOG.info("encoded %d of %d images", done, num_examples)
            last_line = time.monotonic()
    # A figure of some of the images would pass for a figure of all of them.
    assert done == num_examples, f"encoded {done} of {num_examples} images"
    return np.concatenate(parts), np.concatenate(labels)


def _encode(
    encode: Encode, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return encode(batch["images"]), batch["labels"], batch["mask"]
