"""Resuming with another batch size or schedule: what stays, and what is said."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import optim
from simclr_jax.runs import directory, plans
from simclr_jax.runs.checkpoints import Checkpoints
from simclr_jax.training import build, compiling
from simclr_jax.training.step import StepParts, TrainState

_LOG = logging.getLogger(__name__)


def resume(
    config: config_dict.ConfigDict,
    parts: StepParts,
    mesh: Mesh,
    checkpoints: Checkpoints,
    state: TrainState,
    workdir: str,
) -> TrainState:
    """A restored state at the step that it has by this config.

    With another batch size than that of its checkpoint, the state is saved as the first
    checkpoint of a new plan, and the logs so far are set aside; see `runs.plans`. After
    a kill at any moment the same command does what is left to do.

    Args:
      config: resolved.
      parts: of the train step.
      mesh: all devices.
      checkpoints: of the run, which had the state.
      state: as restored.
      workdir: the run directory, with the config from before.

    Raises:
      CheckpointError: the state cannot be saved.
      ConfigError: the directory cannot be written.
    """
    recorded = directory.read_config(workdir) if directory.has_config(workdir) else None
    step, new_size = int(state.step), config.batch.batch_size
    recorded_size = recorded["batch"]["batch_size"] if recorded else new_size
    # Checkpoints of earlier versions do not say it.
    old_size = checkpoints.describe(step).get("batch_size", recorded_size)
    if old_size != new_size:
        state = _converted(parts, mesh, state, same_images(step, old_size, new_size))
        _tell_of_batch_size(config, recorded, step, old_size)
        checkpoints.begin_plan()
        checkpoints.save(int(state.step), state, build.describe(config, parts.model))
        checkpoints.wait()
    # Of the plan before: the config is written after this.
    if recorded_size != new_size:
        plans.set_logs_aside(workdir, checkpoints.folder)
    if recorded is not None:
        old_step = same_images(step, old_size, recorded_size)
        _tell_of_rate(config, recorded, old_step=old_step, new_step=int(state.step))
    return state


def same_images(step: int, old_batch_size: int, new_batch_size: int) -> int:
    """The last step up to which a run with the new size sees no more images."""
    return step * old_batch_size // new_batch_size


def _converted(
    parts: StepParts, mesh: Mesh, state: TrainState, step: int
) -> TrainState:
    """The state with its step and schedule at another step."""

    def convert(state: TrainState, step: jax.Array) -> TrainState:
        opt_state = optim.at_step(state.opt_state, step)
        return dataclasses.replace(state, step=step, opt_state=opt_state)

    sharding = compiling.state_sharding(parts, mesh)
    convert = jax.jit(convert, out_shardings=sharding, donate_argnums=0)
    return convert(state, jnp.int32(step))


def _tell_of_batch_size(
    config: config_dict.ConfigDict,
    recorded: dict[str, Any] | None,
    step: int,
    old_size: int,
) -> None:
    size = config.batch.batch_size
    rest = step * old_size % size
    _LOG.warning(
        "Batch size %d -> %d: step %d is now step %d%s. Momentum, BatchNorm statistics "
        "and LARS's ratios are those of the old size.",
        old_size,
        size,
        step,
        same_images(step, old_size, size),
        f", with {rest} of the images seen to be seen again" if rest else "",
    )
    old_steps = recorded and recorded["schedule"]["train_steps"]
    if old_steps == config.schedule.train_steps:
        _LOG.warning(
            "config.schedule.train_steps=%d is that of the old batch size: the run "
            "sees %.3g times as many images as it would have.",
            old_steps,
            size / old_size,
        )


def _tell_of_rate(
    config: config_dict.ConfigDict,
    recorded: dict[str, Any],
    *,
    old_step: int,
    new_step: int,
) -> None:
    """Says what the learning rate does where the run resumes, if it changes."""
    before = float(build.make_schedule(config_dict.ConfigDict(recorded))(old_step))
    after = float(build.make_schedule(config)(new_step))
    if abs(after - before) > 1e-5 * max(before, after):
        _LOG.warning(
            "The learning rate was %.4g here (step %d of %d) and is now %.4g "
            "(step %d of %d).",
            before,
            old_step,
            recorded["schedule"]["train_steps"],
            after,
            new_step,
            config.schedule.train_steps,
        )
