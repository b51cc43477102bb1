"""What every objective shares: its interface, and the loss of a linear classifier.

An objective is a function of the model's outputs for all views of the global batch, so
it does not matter whether the model saw them at once or in micro-batches. Pretraining's
is `step.Contrastive`, fine-tuning's `finetuning.Supervised`, and distillation's
`distillation.Distillation`.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from simclr_jax.models.simclr import Outputs, Tree

Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]
NUM_VIEWS = 2


class Objective(Protocol):
    """The function that a step minimises. Hashable, as a part of `step.StepParts`."""

    @property
    def num_views(self) -> int:
        """V, how many views of an image the model sees."""
        ...

    @property
    def chance(self) -> float | None:
        """The loss of a model that has learnt nothing, if there is such a level."""
        ...

    def __call__(
        self, outputs: Outputs, params: Tree, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        """The scalar to minimise, and the metrics to log.

        Args:
          outputs: of all views of the global batch, rows [B*V].
          params: the model's; only the classifier's kernel is used, for its decay.
          batch: the model's input; `labels` int32 [B], -1 for none.

        Returns:
          (scalar to minimise, float32 scalars of every step, `loss` among them).
        """
        ...

    def diagnostics(self, outputs: Outputs) -> Metrics:
        """Further metrics, for the steps that are logged.

        They may cost what no step should: passes over all similarities, and sums of
        large arrays over the devices.

        Args:
          outputs: as above.

        Returns:
          float32 scalars; none for an objective without diagnostics.
        """
        ...


def as_float(images: jax.Array) -> jax.Array:
    """Images [N, V, H, W, C] as [N*V, H, W, C] floats in [0, 1].

    One reshape, not a concatenation of two views: with the batch split over devices the
    latter would move the images themselves between them. uint8 becomes float here, on
    the device.
    """
    images = images.reshape(-1, *images.shape[2:])
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0
    return images


def kernel_decay(params: Tree, weight_decay: float) -> jax.Array:
    """Half the squared norm of the classifier's kernel, times the decay."""
    return 0.5 * weight_decay * jnp.sum(jnp.square(params["probe"]["kernel"]))


def classification(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: tuple[float, ...] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy and accuracy over the labelled rows; 0 if there are none.

    Args:
      logits: float32 [N, classes].
      labels: int32 [N], -1 for none.
      class_weights: factors of the cross entropy by class. The sum is divided by the
        number of rows, not by that of their weights, so that the mean over batches does
        not depend on which rows share one.
    """
    labelled = (labels >= 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(labelled), 1.0)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels, 0)
    )
    if class_weights is not None:
        cross_entropy *= jnp.asarray(class_weights)[jnp.maximum(labels, 0)]
    hits = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(cross_entropy * labelled) / count, jnp.sum(hits * labelled) / count
