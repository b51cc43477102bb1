"""The train state and the pure function that advances it by one step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from simclr_jax import losses, parallel
from simclr_jax.models.simclr import Tree
from simclr_jax.training.recipe import Recipe

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; replicated over the mesh.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: {'encoder', 'head', 'probe'}, float32.
      batch_stats: {'encoder', 'head'}, float32.
      opt_state: the optimiser's.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Any


def init_state(recipe: Recipe, key: jax.Array, *, image_size: int) -> TrainState:
    """Draws the initial state."""
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    params, batch_stats = recipe.model.init(key, images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=recipe.optimizer.init(params),
    )


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, recipe: Recipe
) -> tuple[TrainState, Metrics]:
    """One update. Pure, and the same mathematics on any mesh.

    The arrays are global: under `jax.jit` with a batch split over devices, BatchNorm
    statistics and the loss cover the whole batch, and XLA inserts the collectives.

    Args:
      state: before the update.
      batch: `images` [B, V, H, W, C], uint8 or floats in [0, 1]; `labels` int32 [B],
        -1 for none.
      recipe: static.

    Returns:
      (the state after, float32 scalars computed before the update).
    """
    num_images, num_views = batch["images"].shape[:2]
    # One reshape, not a concatenation of two views: with the batch split over devices
    # the latter would move the images themselves between them.
    images = batch["images"].reshape(-1, *batch["images"].shape[2:])
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0

    def objective(params: Tree) -> tuple[jax.Array, tuple[Metrics, Tree]]:
        outputs, batch_stats = recipe.model.apply(
            params, state.batch_stats, images, train=True
        )
        z = outputs.z.reshape(num_images, num_views, -1)
        loss = recipe.loss(z, batch["labels"])
        metrics = {
            "loss": loss,
            **losses.contrastive_metrics(z, temperature=recipe.temperature),
            "effective_rank_h": losses.effective_rank(outputs.h),
            "effective_rank_z": losses.effective_rank(outputs.z),
        }
        total = loss
        if outputs.logits is not None:
            labels = jnp.repeat(batch["labels"], num_views)
            probe_loss, accuracy = _probe(outputs.logits, labels)
            metrics |= {"probe_loss": probe_loss, "probe_accuracy": accuracy}
            squares = jnp.sum(jnp.square(params["probe"]["kernel"]))
            total += probe_loss + 0.5 * recipe.probe_weight_decay * squares
        return total, (metrics, batch_stats)

    gradients, (metrics, batch_stats) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = recipe.optimizer.update(
        gradients, state.opt_state, state.params
    )
    metrics |= {
        "gradient_norm": optax.tree.norm(gradients),
        "update_norm": optax.tree.norm(updates),
        "learning_rate": jnp.asarray(recipe.schedule(state.step), jnp.float32),
    }
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return new_state, metrics


def _probe(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cross entropy and accuracy over the labelled rows."""
    labelled = (labels >= 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(labelled), 1.0)
    losses_ = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels, 0)
    )
    hits = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(losses_ * labelled) / count, jnp.sum(hits * labelled) / count


def compile_init(
    recipe: Recipe, mesh: Mesh, *, image_size: int
) -> Callable[[jax.Array], TrainState]:
    """`init_state` jitted, with the state replicated over the mesh."""
    return jax.jit(
        functools.partial(init_state, recipe, image_size=image_size),
        out_shardings=parallel.replicated(mesh),
    )


def compile_step(
    recipe: Recipe, mesh: Mesh
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """`train_step` jitted: batch split over the mesh, state replicated and donated."""
    whole, split = parallel.replicated(mesh), parallel.batch_sharding(mesh)
    return jax.jit(
        functools.partial(train_step, recipe=recipe),
        in_shardings=(whole, split),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
