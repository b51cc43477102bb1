"""What a step minimises and reports, as a function of the model's outputs.

Only the outputs of all views of the global batch come in, so it does not matter whether
the model saw them at once or in micro-batches.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from simclr_jax import losses
from simclr_jax.models.simclr import Outputs, Tree

Metrics = dict[str, jax.Array]
Batch = dict[str, jax.Array]
# z [B, V, K], labels [B] -> scalar
Loss = Callable[[jax.Array, jax.Array], jax.Array]
NUM_VIEWS = 2


class Objective(Protocol):
    """What a step minimises. Hashable, as a part of `recipe.Recipe`."""

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
        """The scalar to minimise, and what the log shows.

        Args:
          outputs: of all views of the global batch, rows [B*V].
          params: the model's; only the classifier's kernel is used, for its decay.
          batch: what the outputs were made of; `labels` [B], -1 for none.

        Returns:
          (scalar to minimise, float32 scalars, `loss` among them).
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


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """A contrastive loss of two views, and the online probe's loss beside it.

    Attributes:
      loss: z [B, V, K], labels [B] -> scalar.
      temperature: at which the contrastive diagnostics are taken.
      chance: the loss of an encoder that tells no two images apart; None where a good
        encoder need not get below it.
      streaming: how loss and diagnostics walk over the similarities; None: as one matrix.
      probe_weight_decay: of the probe's kernel, as half the squared norm in its loss;
        that is how the reference decays it.
    """

    loss: Loss
    temperature: float
    chance: float | None = None
    streaming: losses.Streaming | None = None
    probe_weight_decay: float = 0.0
    num_views: int = NUM_VIEWS

    def __call__(
        self, outputs: Outputs, params: Tree, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`."""
        labels = batch["labels"]
        z = outputs.z.reshape(-1, NUM_VIEWS, outputs.z.shape[-1])
        loss = self.loss(z, labels)
        metrics = {
            "loss": loss,
            **losses.contrastive_metrics(
                z, temperature=self.temperature, streaming=self.streaming
            ),
            "effective_rank_h": losses.effective_rank(outputs.h),
            "effective_rank_z": losses.effective_rank(outputs.z),
        }
        if outputs.logits is None:
            return loss, metrics
        # Not `jnp.repeat`, which looks labels up and so gathers them from all devices.
        of_views = jnp.broadcast_to(labels[:, None], (len(labels), NUM_VIEWS))
        probe_loss, accuracy = _classification(outputs.logits, of_views.reshape(-1))
        metrics |= {"probe_loss": probe_loss, "probe_accuracy": accuracy}
        decay = _decay(params, self.probe_weight_decay)
        return loss + probe_loss + decay, metrics


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Cross entropy of the labels, of one view.

    Attributes:
      classifier_weight_decay: of the classifier's kernel, as half the squared norm.
    """

    classifier_weight_decay: float = 0.0
    chance: float | None = None
    num_views: int = 1

    def __call__(
        self, outputs: Outputs, params: Tree, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`."""
        assert outputs.logits is not None
        loss, accuracy = _classification(outputs.logits, batch["labels"])
        decay = _decay(params, self.classifier_weight_decay)
        return loss + decay, {"loss": loss, "accuracy": accuracy}


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A teacher's soft labels of one view (SimCLRv2, equations 2 and 3).

    Attributes:
      temperature: tau, of both softmaxes.
      labelled_weight: 1 - alpha, the share of the labels' own cross entropy.
      classifier_weight_decay: as in `Supervised`.
    """

    temperature: float
    labelled_weight: float = 0.0
    classifier_weight_decay: float = 0.0
    chance: float | None = None
    num_views: int = 1

    def __call__(
        self, outputs: Outputs, params: Tree, batch: Batch
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective`; the batch has `teacher_logits` [B, classes]."""
        assert outputs.logits is not None
        teacher = batch["teacher_logits"]
        distilled = jnp.mean(
            optax.softmax_cross_entropy(
                outputs.logits / self.temperature,
                jax.nn.softmax(teacher / self.temperature),
            )
        )
        labelled, accuracy = _classification(outputs.logits, batch["labels"])
        weight = self.labelled_weight
        loss = (1 - weight) * distilled + weight * labelled
        agree = jnp.argmax(outputs.logits, -1) == jnp.argmax(teacher, -1)
        metrics = {
            "loss": loss,
            "distillation_loss": distilled,
            "labelled_loss": labelled,
            "accuracy": accuracy,
            "teacher_agreement": jnp.mean(agree.astype(jnp.float32)),
        }
        return loss + _decay(params, self.classifier_weight_decay), metrics


def _decay(params: Tree, weight_decay: float) -> jax.Array:
    return 0.5 * weight_decay * jnp.sum(jnp.square(params["probe"]["kernel"]))


def _classification(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy and accuracy over the labelled rows; 0 if there are none."""
    labelled = (labels >= 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(labelled), 1.0)
    losses_ = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels, 0)
    )
    hits = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(losses_ * labelled) / count, jnp.sum(hits * labelled) / count
