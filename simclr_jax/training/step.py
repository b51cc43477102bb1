"""One step of pretraining: from a batch of images to the updated state.

`train_step` is a pure function of (state, batch). The model's outputs are passed to an
objective; for pretraining that is `Contrastive`, whose loss is `losses.nt_xent` or
another of `losses.LOSSES`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import losses, models
from simclr_jax.errors import ConfigError
from simclr_jax.models.simclr import Outputs, Tree
from simclr_jax.training import build, divergence, micro_batches
from simclr_jax.training.objectives import (
    NUM_VIEWS,
    Batch,
    Metrics,
    Objective,
    as_float,
    classification,
    kernel_decay,
)

# Images [N, H, W, 3] in [0, 1] -> logits; its weights are the leaves of the pytree.
Teacher = jax.tree_util.Partial


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The training state; sharded by `compiling.state_sharding`.

    Attributes:
      step: int32 scalar, the number of updates so far.
      params: {'encoder', 'head', 'probe'}, float32.
      batch_stats: {'encoder', 'head'}, float32.
      opt_state: state of the optimiser.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class StepParts:
    """The parts of a train step. Hashable: a static argument of `jax.jit`.

    Attributes:
      model: encoder, head and optional classifier.
      objective: the function to minimise.
      optimizer: of all parameters.
      schedule: step -> learning rate; for the log, since `optimizer` holds it too.
      num_micro_batches: of a step; see `micro_batches`.
      shard_state: shard parameters and optimiser state over devices instead of
        replicating them.
      skip_nonfinite: leave out steps that are not finite.
    """

    model: models.SimCLR
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: build.Schedule
    num_micro_batches: int = 1
    shard_state: bool = False
    skip_nonfinite: bool = False


def init_state(parts: StepParts, key: jax.Array, *, image_size: int) -> TrainState:
    """Initialises the state with random weights."""
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    params, batch_stats = parts.model.init(key, images)
    opt_state = parts.optimizer.init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state)


def train_step(
    state: TrainState,
    batch: Batch,
    teacher: Teacher | None = None,
    *,
    parts: StepParts,
    make_views: Callable[[Batch, jax.Array], Batch] | None = None,
) -> tuple[TrainState, Metrics, Outputs]:
    """One update. Pure, and the same mathematics on any mesh.

    The arrays are global: under `jax.jit` with a batch split over devices, BatchNorm
    statistics and the loss cover the whole batch, and XLA inserts the collectives.

    Args:
      state: before the update.
      batch: `images` [B, V, H, W, C], uint8 or floats in [0, 1]; `labels` int32 [B],
        -1 for none. With `make_views`, the input of that function.
      teacher: for objectives that learn from another model; not trained.
      parts: static.
      make_views: computes the batch on the device, see `device_views`; static.

    Returns:
      (the state after the update; float32 scalars of this step, and sums by layer, see
      `divergence`; the model's outputs for the objective's `diagnostics`).
    """
    if make_views is not None:
        batch = make_views(batch, state.step)
    if teacher is not None:
        logits = teacher(as_float(batch["images"]))
        batch = batch | {"teacher_logits": jax.lax.stop_gradient(logits)}
    compute: Callable[..., tuple[Tree, Tree, Metrics, Outputs]] = gradients
    if parts.num_micro_batches > 1:
        compute = functools.partial(
            micro_batches.gradients, num_micro_batches=parts.num_micro_batches
        )
    grads, batch_stats, metrics, outputs = compute(
        parts.model, parts.objective, state.params, state.batch_stats, batch
    )
    updates, opt_state = parts.optimizer.update(grads, state.opt_state, state.params)
    metrics |= divergence.norms(grads, updates, batch_stats)
    metrics["learning_rate"] = jnp.asarray(parts.schedule(state.step), jnp.float32)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(state.step + 1, params, batch_stats, opt_state)
    if parts.skip_nonfinite:
        new, metrics = divergence.skip_nonfinite(state, new, metrics)
    return new, metrics, outputs


def gradients(
    model: models.SimCLR,
    objective: Objective,
    params: Tree,
    batch_stats: Tree,
    batch: Batch,
) -> tuple[Tree, Tree, Metrics, Outputs]:
    """(gradients, BatchNorm statistics, metrics, outputs) of a batch in one pass."""

    def loss_fn(params: Tree) -> tuple[jax.Array, tuple[Tree, Metrics, Outputs]]:
        images = as_float(batch["images"])
        outputs, new_stats = model.apply(params, batch_stats, images, train=True)
        loss, metrics = objective(outputs, params, batch)
        return loss, (new_stats, metrics, outputs)

    grads, aux = jax.grad(loss_fn, has_aux=True)(params)
    return grads, *aux


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """A contrastive loss of two views, plus the loss of the online probe.

    Attributes:
      loss: z [B, V, K] -> scalar, such as `functools.partial(losses.nt_xent,
        temperature=0.1)`; takes the labels [B] too if `needs_labels`.
      temperature: of the contrastive diagnostics.
      needs_labels: whether the loss takes labels.
      chance: the loss of an encoder that tells no two images apart; None where a good
        encoder need not get below it.
      streaming: computes loss and diagnostics block by block; None builds the matrix
        of all pairs.
      probe_weight_decay: of the probe's kernel, as half the squared norm in its loss,
        as in the reference.
    """

    loss: Callable[..., jax.Array]
    temperature: float
    needs_labels: bool = False
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
        loss = self.loss(z, labels) if self.needs_labels else self.loss(z)
        if outputs.logits is None:
            return loss, {"loss": loss}
        # Not `jnp.repeat`, whose gather would all-gather the labels.
        view_labels = jnp.broadcast_to(labels[:, None], (len(labels), NUM_VIEWS))
        probe_loss, accuracy = classification(outputs.logits, view_labels.reshape(-1))
        metrics = {"loss": loss, "probe_loss": probe_loss, "probe_accuracy": accuracy}
        decay = kernel_decay(params, self.probe_weight_decay)
        return loss + probe_loss + decay, metrics

    def diagnostics(self, outputs: Outputs) -> Metrics:
        """See `Objective`."""
        z = outputs.z.reshape(-1, NUM_VIEWS, outputs.z.shape[-1])
        return {
            **losses.contrastive_metrics(
                z, temperature=self.temperature, streaming=self.streaming
            ),
            "effective_rank_h": losses.effective_rank(outputs.h),
            "effective_rank_z": losses.effective_rank(outputs.z),
        }


def make_contrastive(
    config: config_dict.ConfigDict, *, num_classes: int | None, mesh: Mesh | None = None
) -> Contrastive:
    """The objective of a config's group `loss`.

    Args:
      config: the whole config.
      num_classes: of the training labels; None where there are none.
      mesh: that the batch is split over; None for one device.

    Raises:
      ConfigError: the loss needs labels and there are none, or cannot stream.
    """
    name = config.loss.name
    spec = losses.LOSSES[name]
    if spec.needs_labels and num_classes is None:
        raise ConfigError(
            f"config.loss.name={name!r}: needs labels, and config.data.dataset="
            f"{config.data.dataset!r} has none"
        )
    streaming = build.make_streaming(config, mesh)
    settings = {key: config.loss[key] for key in spec.settings}
    chance = spec.chance(config.batch.batch_size, NUM_VIEWS, **settings)
    if spec.can_stream:
        settings["streaming"] = streaming
    return Contrastive(
        loss=functools.partial(spec.function, **settings),
        temperature=config.loss.temperature,
        needs_labels=spec.needs_labels,
        chance=chance,
        streaming=streaming,
        probe_weight_decay=config.optimizer.weight_decay,
    )


def pretraining_parts(
    config: config_dict.ConfigDict, *, num_classes: int | None, mesh: Mesh | None = None
) -> StepParts:
    """The parts of pretraining's step.

    Args:
      config: resolved, so with training and warm-up steps decided.
      num_classes: of the training labels; None where there are none.
      mesh: of the devices that run the step; None for one device.

    Raises:
      ConfigError: as `make_contrastive`.
    """
    schedule = build.make_schedule(config)
    return StepParts(
        model=build.make_model(config, num_classes=num_classes, mesh=mesh),
        objective=make_contrastive(config, num_classes=num_classes, mesh=mesh),
        optimizer=build.make_optimizer(config.optimizer, schedule),
        schedule=schedule,
        num_micro_batches=build.count_micro_batches(config),
        shard_state=config.parallel.shard_state,
        skip_nonfinite=config.optimizer.on_nonfinite == "skip",
    )
