"""The train step, jitted for a mesh: where its arrays live, and what is donated."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from simclr_jax import parallel
from simclr_jax.models.simclr import Outputs
from simclr_jax.training import xla_options
from simclr_jax.training.device_views import DeviceViews
from simclr_jax.training.objectives import Metrics
from simclr_jax.training.step import (
    StepParts,
    TrainState,
    init_state,
    train_step,
)


# Asked for at every compilation and restore; tracing a large net takes seconds.
@functools.lru_cache(maxsize=4)
def state_sharding(parts: StepParts, mesh: Mesh) -> Any:
    """Where each array of the state lives: whole everywhere, or split by `parts`.

    Returns:
      A TrainState of NamedShardings.
    """
    # No parameter's shape depends on the size of the images.
    init = functools.partial(init_state, parts, image_size=32)
    like = jax.eval_shape(init, jax.random.key(0))
    if parts.shard_state:
        return parallel.spread(mesh, like)
    return jax.tree.map(lambda _: parallel.replicated(mesh), like)


# The programs of equal parts are compiled once, for trainings one after the other.
@functools.lru_cache(maxsize=2)
def compile_init(
    parts: StepParts, mesh: Mesh, *, image_size: int
) -> Callable[[jax.Array], TrainState]:
    """`init_state` jitted, with the state laid out as in `state_sharding`."""
    return jax.jit(
        functools.partial(init_state, parts, image_size=image_size),
        out_shardings=state_sharding(parts, mesh),
        compiler_options=xla_options.of_init(mesh),
    )


@functools.lru_cache(maxsize=2)
def compile_step(
    parts: StepParts,
    mesh: Mesh,
    views: DeviceViews | None = None,
    *,
    with_teacher: bool = False,
    deterministic: bool = False,
) -> Callable[..., tuple[TrainState, Metrics, Outputs]]:
    """`train_step` jitted: batch and outputs split over the mesh, state donated.

    Input and output states are laid out by `state_sharding`; metrics, a teacher's
    weights, and the dataset where `views` take one, are replicated.

    Args:
      parts: of the step.
      mesh: all devices.
      views: computes the batch on the devices; None where the host does.
      with_teacher: the step has a third argument, the teacher.
      deterministic: the same bits in every run on GPUs; they are anyway on TPUs and
        CPUs.
    """
    whole = parallel.replicated(mesh)
    state, split = state_sharding(parts, mesh), parallel.batch_sharding(mesh)
    batch = views.input_sharding if views else split
    return jax.jit(
        functools.partial(train_step, parts=parts, make_views=views),
        in_shardings=(state, batch, whole) if with_teacher else (state, batch),
        out_shardings=(state, whole, split),
        donate_argnums=0,
        compiler_options=xla_options.of_step(mesh, deterministic=deterministic),
    )


@functools.lru_cache(maxsize=2)
def compile_diagnostics(parts: StepParts, mesh: Mesh) -> Callable[[Outputs], Metrics]:
    """The objective's diagnostics of a step's outputs, jitted; replicated.

    A program of its own, so that only steps that are logged pay for it: its passes over
    all similarities and its sums over the devices are no part of the train step.
    """
    return jax.jit(
        parts.objective.diagnostics,
        in_shardings=parallel.batch_sharding(mesh),
        out_shardings=parallel.replicated(mesh),
    )
