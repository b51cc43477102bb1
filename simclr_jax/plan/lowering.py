"""The train step and its parts, lowered for devices that need not exist."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.training import device_views
from simclr_jax.training.compiling import compile_diagnostics, compile_step
from simclr_jax.training.objectives import NUM_VIEWS
from simclr_jax.training.step import init_state, make_contrastive, pretraining_parts


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
    parts = pretraining_parts(config, num_classes=num_classes, mesh=mesh)
    views = device_views.from_config(config, mesh)
    size, batch_size = config.image_size, config.batch.batch_size
    init = functools.partial(init_state, parts, image_size=size)
    batch: dict[str, jax.ShapeDtypeStruct] = {
        "images": jax.ShapeDtypeStruct(
            (batch_size, NUM_VIEWS, size, size, 3), jnp.uint8
        ),
        "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    if views:
        batch = views.input_shapes(dataset_shape)
    state = jax.eval_shape(init, jax.random.key(0))
    return compile_step(parts, mesh, views).lower(state, batch)  # type: ignore[attr-defined]


def lower_diagnostics(
    config: config_dict.ConfigDict, mesh: Mesh, step: jax.stages.Lowered
) -> jax.stages.Lowered:
    """What a step that is logged runs on top of it; see `lower`.

    Args:
      config: of the step.
      mesh: of the step.
      step: from `lower`; its outputs are the input.
    """
    _, _, outputs = step.out_info
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), outputs)
    parts = pretraining_parts(config, num_classes=None, mesh=mesh)
    return compile_diagnostics(parts, mesh).lower(shapes)  # type: ignore[attr-defined]


def lower_views(
    config: config_dict.ConfigDict,
    mesh: Mesh,
    *,
    dataset_shape: tuple[int, int, int] | None = None,
) -> jax.stages.Lowered:
    """The part of the step that computes the views, alone; see `lower`."""
    views = device_views.DeviceViews(config, mesh)
    return jax.jit(
        views,
        in_shardings=(views.input_sharding, parallel.replicated(mesh)),
        out_shardings=parallel.batch_sharding(mesh),
    ).lower(views.input_shapes(dataset_shape), jax.ShapeDtypeStruct((), jnp.int32))


def lower_loss(config: config_dict.ConfigDict, mesh: Mesh) -> jax.stages.Lowered:
    """Loss and gradient alone, with respect to z [B, V, K] split on B; see `lower`."""
    objective = make_contrastive(config, num_classes=2, mesh=mesh)
    shape = (config.batch.batch_size, NUM_VIEWS, config.head.output_dim)
    split = parallel.batch_sharding(mesh)
    labels = [jnp.zeros(config.batch.batch_size, jnp.int32)]
    extra = labels if objective.needs_labels else []
    return jax.jit(
        lambda z: jax.value_and_grad(objective.loss)(z, *extra),
        in_shardings=split,
        out_shardings=(parallel.replicated(mesh), split),
    ).lower(jax.ShapeDtypeStruct(shape, jnp.float32))
