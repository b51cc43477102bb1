"""Checkpoints of a run, through Orbax: asynchronous and atomic.

A checkpoint has three items: `state` (everything a run needs to go on), `encoder`
(parameters and BatchNorm statistics of the encoder alone) and `description` (JSON: how
to build that encoder, its preprocessing, the config's hash). The latter two are all
that a user of the pretrained encoder reads.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from simclr_jax.errors import CheckpointError, CheckpointNotFound, first_line
from simclr_jax.models.simclr import Tree
from simclr_jax.training.step import TrainState

_LOG = logging.getLogger(__name__)

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self, workdir: str, *, keep_last: int, keep_every_steps: int | None
    ) -> None:
        """Opens, or makes, the folder `checkpoints` of a run.

        Args:
          workdir: the run directory.
          keep_last: how many of the newest to keep.
          keep_every_steps: keep multiples of it for ever too.
        """
        self._folder = pathlib.Path(workdir).absolute() / FOLDER
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=("state", "encoder", "description"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                keep_period=keep_every_steps,
                enable_async_checkpointing=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, description: dict[str, Any]) -> None:
        """Starts to save; returns once the state is copied off the devices."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_fields(state)),
                encoder=ocp.args.StandardSave(
                    {
                        "params": state.params["encoder"],
                        "batch_stats": state.batch_stats["encoder"],
                    }
                ),
                description=ocp.args.JsonSave(description),
            ),
        )

    def restore(
        self, step: int, like: TrainState, sharding: NamedSharding
    ) -> TrainState:
        """Reads a state.

        Args:
          step: of the checkpoint.
          like: shapes and dtypes to expect.
          sharding: of every array of the result.

        Raises:
          CheckpointError: the files are damaged, or of other shapes.
        """
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            _fields(like),
        )
        try:
            items = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )
        except (ValueError, OSError, KeyError) as error:
            raise CheckpointError(_damaged(self._folder / str(step), error)) from error
        return TrainState(**items["state"])

    def wait(self) -> None:
        """Returns when every save so far is on disk; raises if one failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees the threads."""
        self._manager.close()


def _fields(state: TrainState) -> dict[str, Any]:
    # Not dataclasses.asdict, which would copy every array.
    return {
        field.name: getattr(state, field.name) for field in dataclasses.fields(state)
    }


def _damaged(path: pathlib.Path, error: Exception) -> str:
    return (
        f"checkpoint {path}: cannot be restored ({first_line(error)}). Either the "
        "config changed since, or its files are damaged; in that case remove this "
        "folder, and the run goes on from the one before."
    )


def open_for_reading(workdir: str, step: int | None) -> tuple[pathlib.Path, int]:
    """Finds a checkpoint of a run.

    Returns:
      (its folder, its step); the newest one where `step` is None.

    Raises:
      CheckpointNotFound: there is none.
    """
    folder = pathlib.Path(workdir).absolute() / FOLDER
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        raise CheckpointNotFound(f"{workdir}: holds no checkpoint of a run")
    if step is not None and step not in steps:
        raise CheckpointNotFound(
            f"{workdir}: has no checkpoint of step {step}; there are "
            f"{', '.join(map(str, sorted(steps)))}"
        )
    chosen = max(steps) if step is None else step
    return folder / str(chosen), chosen


def read_description(checkpoint: pathlib.Path) -> dict[str, Any]:
    """The JSON item of a checkpoint folder.

    Raises:
      CheckpointError: the files are damaged.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            return checkpointer.restore(checkpoint / "description")
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(_damaged(checkpoint, error)) from error


def read_encoder(checkpoint: pathlib.Path, like: Tree, sharding: NamedSharding) -> Tree:
    """The encoder of a checkpoint folder, as {'params', 'batch_stats'}.

    Args:
      checkpoint: from `open_for_reading`.
      like: arrays or shapes to expect.
      sharding: of every array of the result.

    Raises:
      CheckpointError: the files are damaged, or of other shapes.
    """
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(checkpoint / "encoder", target)
    except (ValueError, OSError, KeyError) as error:
        _LOG.debug("restoring %s", checkpoint, exc_info=error)
        raise CheckpointError(_damaged(checkpoint, error)) from error
