"""The train state and the pure function that advances it by one step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.models.simclr import Tree
from simclr_jax.training import device_views, micro_batches, objectives
from simclr_jax.training.build import Recipe, make_loss, make_recipe
from simclr_jax.training.device_views import DeviceViews
from simclr_jax.training.objectives import NUM_VIEWS, Metrics

# Images [N, H, W, 3] in [0, 1] -> logits; its weights are the leaves of the pytree.
Teacher = jax.tree_util.Partial


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; laid out by `state_sharding`.

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
    state: TrainState,
    batch: dict[str, jax.Array],
    teacher: Teacher | None = None,
    *,
    recipe: Recipe,
    views: DeviceViews | None = None,
) -> tuple[TrainState, Metrics]:
    """One update. Pure, and the same mathematics on any mesh.

    The arrays are global: under `jax.jit` with a batch split over devices, BatchNorm
    statistics and the loss cover the whole batch, and XLA inserts the collectives.

    Args:
      state: before the update.
      batch: `images` [B, V, H, W, C], uint8 or floats in [0, 1]; `labels` int32 [B],
        -1 for none. With `views`, what they are made of.
      teacher: for objectives that learn from another model; not trained.
      recipe: static.
      views: makes the batch; static.

    Returns:
      (the state after, float32 scalars computed before the update).
    """
    if views is not None:
        batch = views(batch, state.step)
    if teacher is not None:
        images = objectives.as_float(batch["images"])
        batch = batch | {"teacher_logits": jax.lax.stop_gradient(teacher(images))}
    differentiate = micro_batches.gradients if recipe.num_micro_batches > 1 else _whole
    gradients, batch_stats, metrics = differentiate(
        recipe, state.params, state.batch_stats, batch
    )
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


def _whole(
    recipe: Recipe, params: Tree, batch_stats: Tree, batch: dict[str, jax.Array]
) -> tuple[Tree, Tree, Metrics]:
    """(gradients, new statistics, metrics), the whole batch at once."""

    def total(params: Tree) -> tuple[jax.Array, tuple[Tree, Metrics]]:
        outputs, new_stats = recipe.model.apply(
            params, batch_stats, objectives.as_float(batch["images"]), train=True
        )
        value, metrics = recipe.objective(outputs, params, batch)
        return value, (new_stats, metrics)

    gradients, (new_stats, metrics) = jax.grad(total, has_aux=True)(params)
    return gradients, new_stats, metrics


# Asked for at every compilation and restore; tracing a large net takes seconds.
@functools.lru_cache(maxsize=4)
def state_sharding(recipe: Recipe, mesh: Mesh) -> Any:
    """Where each array of the state lives: whole everywhere, or split by the recipe.

    Returns:
      A TrainState of NamedShardings.
    """
    # No parameter's shape depends on the size of the images.
    init = functools.partial(init_state, recipe, image_size=32)
    like = jax.eval_shape(init, jax.random.key(0))
    if recipe.shard_state:
        return parallel.spread(mesh, like)
    return jax.tree.map(lambda _: parallel.replicated(mesh), like)


def compile_init(
    recipe: Recipe, mesh: Mesh, *, image_size: int
) -> Callable[[jax.Array], TrainState]:
    """`init_state` jitted, with the state laid out as in `state_sharding`."""
    return jax.jit(
        functools.partial(init_state, recipe, image_size=image_size),
        out_shardings=state_sharding(recipe, mesh),
    )


def compile_step(
    recipe: Recipe,
    mesh: Mesh,
    views: DeviceViews | None = None,
    *,
    taught: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """`train_step` jitted: batch split over the mesh, state donated.

    The state comes and goes as `state_sharding` says; metrics, and a dataset of which
    `views` make the batch, are whole everywhere, as is a teacher's weights.

    Args:
      recipe: what a step is made of.
      mesh: all devices.
      views: makes the batch.
      taught: the step has a third argument, the teacher.
    """
    whole = parallel.replicated(mesh)
    state = state_sharding(recipe, mesh)
    given = views.input_sharding if views else parallel.batch_sharding(mesh)
    return jax.jit(
        functools.partial(train_step, recipe=recipe, views=views),
        in_shardings=(state, given, whole) if taught else (state, given),
        out_shardings=(state, whole),
        donate_argnums=0,
    )


def lower(
    config: config_dict.ConfigDict,
    mesh: Mesh,
    *,
    num_classes: int | None,
    dataset_shape: tuple[int, int, int] | None = None,
) -> jax.stages.Lowered:
    """The train step of a config, lowered for devices that need not be there.

    Args:
      config: resolved.
      mesh: of real devices or of a `jax.experimental.topologies` description.
      num_classes: of the training labels; None where there are none.
      dataset_shape: (N, H, W) of the training images, where the accelerator holds them.
    """
    recipe = make_recipe(config, num_classes=num_classes, mesh=mesh)
    views = device_views.of_config(config, mesh)
    size, batch_size = config.image_size, config.batch.batch_size
    init = functools.partial(init_state, recipe, image_size=size)
    batch = {
        "images": jax.ShapeDtypeStruct(
            (batch_size, NUM_VIEWS, size, size, 3), jnp.uint8
        ),
        "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    if views:
        batch = views.input_shapes(dataset_shape)
    state = jax.eval_shape(init, jax.random.key(0))
    return compile_step(recipe, mesh, views).lower(state, batch)  # type: ignore[attr-defined]


def lower_views(
    config: config_dict.ConfigDict,
    mesh: Mesh,
    *,
    dataset_shape: tuple[int, int, int] | None = None,
) -> jax.stages.Lowered:
    """The part of the step that makes the views, by itself; see `lower`."""
    views = device_views.DeviceViews(config, mesh)
    return jax.jit(
        views,
        in_shardings=(views.input_sharding, parallel.replicated(mesh)),
        out_shardings=parallel.batch_sharding(mesh),
    ).lower(views.input_shapes(dataset_shape), jax.ShapeDtypeStruct((), jnp.int32))


def lower_loss(config: config_dict.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """Loss and gradient alone, with respect to z [B, V, K] split on B; see `lower`."""
    loss, _, _ = make_loss(config, num_classes=2, mesh=mesh)
    shape = (config.batch.batch_size, NUM_VIEWS, config.head.output_dim)
    split = parallel.batch_sharding(mesh)
    labels = jnp.zeros(config.batch.batch_size, jnp.int32)
    return jax.jit(
        lambda z: jax.value_and_grad(loss)(z, labels),
        in_shardings=split,
        out_shardings=(parallel.replicated(mesh), split),
    ).lower(jax.ShapeDtypeStruct(shape, jnp.float32))
