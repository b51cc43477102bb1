"""Checkpoints of a run, through Orbax: asynchronous and atomic.

A checkpoint has four items: `state` (everything a run needs to resume), `encoder`
(parameters and BatchNorm statistics of the encoder alone), `heads` (those of the
projection head and the probe) and `description` (JSON: how to build them, the
preprocessing, the config's hash). Users of pretrained weights read the last three;
imported weights have no state.

A checkpoint on a local disk is written under another name and renamed when it is
complete. Stores and mounted buckets cannot rename a folder in one step: there it is
complete when it has the file `commit_success.txt`, and the folder `checkpoints` has the
file `.commit_by_file`, which says so wherever the folder is copied to.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from simclr_jax import paths
from simclr_jax.errors import CheckpointError, CheckpointNotFound, first_line
from simclr_jax.models.simclr import Tree
from simclr_jax.parallel import processes
from simclr_jax.runs import orbax_paths

_LOG = logging.getLogger(__name__)

FOLDER = "checkpoints"
# A dataclass of trees of arrays with `params` and `batch_stats`: `step.TrainState`.
State = TypeVar("State")


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self, workdir: str, *, keep_last: int, keep_every_steps: int | None
    ) -> None:
        """Opens, or creates, the folder `checkpoints` of a run.

        Args:
          workdir: the run directory.
          keep_last: number of newest checkpoints to keep.
          keep_every_steps: also keep every checkpoint at a multiple of it.
        """
        self._folder = paths.absolute(workdir) / FOLDER
        if processes.is_main():
            orbax_paths.prepare(self._folder)
        processes.barrier()
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_names=("state", "encoder", "heads", "description"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                keep_period=keep_every_steps,
                enable_async_checkpointing=True,
                temporary_path_class=orbax_paths.temporary_path_class(self._folder),
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, description: dict[str, Any]) -> None:
        """Starts to save; returns once the state is copied off the devices.

        Raises:
          CheckpointError: this save, or the one before, failed.
        """
        self._save(
            step,
            state.params,
            state.batch_stats,
            description,
            state=ocp.args.StandardSave(_fields(state)),
        )

    def save_weights(
        self, step: int, params: Tree, batch_stats: Tree, description: dict[str, Any]
    ) -> None:
        """Saves weights without a state; pretraining cannot resume from them."""
        self._save(step, params, batch_stats, description)

    def _save(
        self,
        step: int,
        params: Tree,
        batch_stats: Tree,
        description: dict[str, Any],
        **items: Any,
    ) -> None:
        variables = {"params": params, "batch_stats": batch_stats}
        encoder, heads = separate_encoder(variables)
        if heads:
            items["heads"] = ocp.args.StandardSave(heads)
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    encoder=ocp.args.StandardSave(encoder),
                    description=ocp.args.JsonSave({**description, "step": step}),
                    **items,
                ),
            )

    def restore(self, step: int, like: State, sharding: State) -> State:
        """Reads a state; the devices and shardings may differ from those that wrote it.

        Args:
          step: of the checkpoint.
          like: shapes and dtypes to expect.
          sharding: that of each array of the result, in its place.

        Raises:
          CheckpointError: the files are damaged, or of other shapes; or they hold
            imported weights, which have no state.
        """
        if not (self._folder / str(step) / "state").exists():
            raise CheckpointError(
                f"checkpoint {self._folder / str(step)}: holds imported weights and no "
                "state of a pretraining to resume; use a new workdir"
            )
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding
            ),
            _fields(like),
            _fields(sharding),
        )
        try:
            items = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )
        except (ValueError, OSError, KeyError) as error:
            raise CheckpointError(_damaged(self._folder / str(step), error)) from error
        return type(like)(**items["state"])

    def wait(self) -> None:
        """Returns when every save so far is complete.

        Raises:
          CheckpointError: one failed.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees the threads.

        Raises:
          CheckpointError: a save failed.
        """
        with self._saving():
            self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # ValueError is TensorStore's.
            if not isinstance(error, ValueError) and not paths.is_failure(error):
                raise
            raise CheckpointError(
                f"checkpoints in {self._folder}: one cannot be saved "
                f"({first_line(error)}); earlier ones are unchanged"
            ) from error


def separate_encoder(variables: Tree) -> tuple[Tree, Tree]:
    """A model's {'params', 'batch_stats'} as those of its encoder and of the rest.

    The encoder's are bare, the others still by part; empty collections are left out.
    """
    encoder, heads = {}, {}
    for name, parts in variables.items():
        encoder[name] = parts["encoder"]
        if rest := {part: tree for part, tree in parts.items() if part != "encoder"}:
            heads[name] = rest
    return encoder, heads


def _fields(state: Any) -> dict[str, Any]:
    # Not dataclasses.asdict, which would copy every array.
    return {
        field.name: getattr(state, field.name) for field in dataclasses.fields(state)
    }


def _damaged(path: epath.Path, error: Exception) -> str:
    return (
        f"checkpoint {path}: cannot be restored ({first_line(error)}). Either the "
        "config changed since, or its files are damaged; in that case remove this "
        "folder, and the run resumes from the one before it."
    )


def open_for_reading(workdir: str, step: int | None) -> tuple[epath.Path, int]:
    """Finds a checkpoint of a run to read.

    Returns:
      (its folder, its step); the newest one where `step` is None.

    Raises:
      CheckpointNotFound: there is none.
    """
    paths.check_reachable(workdir, flag="workdir")
    folder = paths.absolute(workdir) / FOLDER
    steps = orbax_paths.complete_steps(folder)
    if not steps:
        raise CheckpointNotFound(f"{workdir}: holds no checkpoint of a run")
    if step is not None and step not in steps:
        raise CheckpointNotFound(
            f"{workdir}: has no checkpoint of step {step}; there are "
            f"{', '.join(map(str, sorted(steps)))}"
        )
    chosen = max(steps) if step is None else step
    return folder / str(chosen), chosen


def read_description(checkpoint: epath.Path) -> dict[str, Any]:
    """The JSON item of a checkpoint folder.

    Raises:
      CheckpointError: the files are damaged.
    """
    try:
        complete = orbax_paths.temporary_path_class(checkpoint.parent)
        with ocp.Checkpointer(
            ocp.JsonCheckpointHandler(), temporary_path_class=complete
        ) as checkpointer:
            return checkpointer.restore(checkpoint / "description")
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(_damaged(checkpoint, error)) from error


def read_variables(
    checkpoint: epath.Path, item: str, like: Tree, sharding: Sharding
) -> Tree:
    """The item `encoder` or `heads` of a checkpoint folder.

    Args:
      checkpoint: from `open_for_reading`.
      item: its name.
      like: arrays or shapes to expect.
      sharding: of every array of the result.

    Raises:
      CheckpointError: the files are damaged, or of other shapes.
    """
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
    )
    try:
        with ocp.StandardCheckpointer(
            temporary_path_class=orbax_paths.temporary_path_class(checkpoint.parent)
        ) as checkpointer:
            return checkpointer.restore(checkpoint / item, target)
    except (ValueError, OSError, KeyError) as error:
        _LOG.debug("restoring %s", checkpoint, exc_info=error)
        raise CheckpointError(_damaged(checkpoint, error)) from error
