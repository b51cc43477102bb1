"""Checkpoints of a run, through Orbax: asynchronous and atomic.

A checkpoint has four items: `state` (everything a run needs to resume), `encoder`
(parameters and BatchNorm statistics of the encoder alone), `heads` (those of the
projection head and the probe) and `description` (JSON: how to build them, the
preprocessing, the config's hash, a checksum of each array and of itself). Users of
pretrained weights read the last three; imported weights have no state. Checksums are
compared whenever arrays are read.

A checkpoint on a local disk is written under another name and renamed when it is
complete. Stores and mounted buckets cannot rename a folder in one step: there it is
complete when it has the file `commit_success.txt`, and the folder `checkpoints` has the
file `.commit_by_file`, which says so wherever the folder is copied to.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding

from simclr_jax import paths
from simclr_jax.errors import CheckpointDamaged, CheckpointError, CheckpointNotFound
from simclr_jax.models.simclr import Tree
from simclr_jax.parallel import processes
from simclr_jax.runs import (
    best,
    checksums,
    damage,
    orbax_paths,
    ownership,
    plans,
    room,
)

_LOG = logging.getLogger(__name__)

FOLDER = plans.FIRST
# Every description has one of these.
_MARKS = ("config_hash", "checksum")
# A dataclass of trees of arrays with `params` and `batch_stats`: `step.TrainState`.
State = TypeVar("State")


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(
        self,
        workdir: str,
        *,
        keep_last: int,
        keep_every_steps: int | None,
        keep_best: bool = False,
        with_checksums: bool = True,
        owner: ownership.Ownership | None = None,
    ) -> None:
        """Opens, or creates, the folder of checkpoints of a run.

        Args:
          workdir: the run directory.
          keep_last: number of newest checkpoints to keep.
          keep_every_steps: also keep every checkpoint at a multiple of it.
          keep_best: also keep the best one by `held_out`; see `best.Best`.
          with_checksums: record checksums of arrays, and compare them.
          owner: its lease is looked at before every save.
        """
        self._with_checksums = with_checksums
        self._keep_last, self._keep_every_steps = keep_last, keep_every_steps
        self._keep_best = keep_best
        self._owner = owner
        self._failed = False
        self._open(plans.folder_in_force(workdir))

    def _open(self, folder: epath.Path) -> None:
        self._folder = folder
        if processes.is_main():
            orbax_paths.prepare(folder)
        processes.barrier()
        self.best = best.Best()
        self._manager = ocp.CheckpointManager(
            folder,
            item_names=("state", "encoder", "heads", "description"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=best.policy(
                    self._keep_last,
                    self._keep_every_steps,
                    self.best if self._keep_best else None,
                ),
                enable_async_checkpointing=True,
                temporary_path_class=orbax_paths.temporary_path_class(folder),
            ),
        )
        self._find_best()

    def _find_best(self) -> None:
        if self._keep_best:
            self.best.find(self._manager.all_steps(), self.describe)

    def is_best(self, held_out: dict[str, Any]) -> bool:
        """Whether a checkpoint with this figure is to be kept for it."""
        return self._keep_best and self.best.is_better(held_out)

    @property
    def folder(self) -> epath.Path:
        """The folder of the plan in force, or of the one that begins."""
        return self._folder

    def begin_plan(self) -> None:
        """Takes a new folder for the checkpoints from here on; see `plans`."""
        self.close()
        self._open(plans.next_folder(self._folder))

    def describe(self, step: int) -> dict[str, Any]:
        """The description of a checkpoint; see `read_description`."""
        return read_description(self._folder / str(step))

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, description: dict[str, Any]) -> None:
        """Starts to save; returns once the state is copied off the devices.

        Args:
          step: number of updates.
          state: see `State`.
          description: of the checkpoint; may have a `best.HELD_OUT`.

        Raises:
          CheckpointError: this save, or the one before, failed.
          RunFailed: the directory is no longer this process's.
        """
        self._save(
            step,
            state.params,
            state.batch_stats,
            description | self._sums(_fields(state)),
            state=ocp.args.StandardSave(_fields(state)),
        )

    def save_weights(
        self, step: int, params: Tree, batch_stats: Tree, description: dict[str, Any]
    ) -> None:
        """Saves weights without a state; pretraining cannot resume from them."""
        variables = {"params": params, "batch_stats": batch_stats}
        self._save(step, params, batch_stats, description | self._sums(variables))

    def _sums(self, tree: dict[str, Any]) -> dict[str, Any]:
        return {"checksums": checksums.of_tree(tree) if self._with_checksums else {}}

    def _save(
        self,
        step: int,
        params: Tree,
        batch_stats: Tree,
        description: dict[str, Any],
        **items: Any,
    ) -> None:
        if self._owner is not None:
            self._owner.check(now=True)
        variables = {"params": params, "batch_stats": batch_stats}
        encoder, heads = separate_encoder(variables)
        if best.HELD_OUT in description:
            # Before the save, which decides what it removes when it is complete.
            self.best.update(step, description[best.HELD_OUT])
        if heads:
            items["heads"] = ocp.args.StandardSave(heads)
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    encoder=ocp.args.StandardSave(encoder),
                    description=ocp.args.JsonSave(_sealed(description, step)),
                    **items,
                ),
            )

    def restore_newest(
        self, like: State, sharding: State, config_hash: str
    ) -> State | None:
        """Reads the newest good state, and moves damaged ones that are newer aside.

        The devices and shardings may differ from those that wrote it. All processes
        call this, and all take the same checkpoint.

        Args:
          like: shapes and dtypes to expect.
          sharding: that of each array of the result, in its place.
          config_hash: of this run's config, to tell a changed config from damage.

        Returns:
          The state; None where there is no checkpoint.

        Raises:
          CheckpointError: every checkpoint is damaged; or the newest one is of another
            config, has imported weights and no state, or cannot be reached.
          ConfigError: the processes see different checkpoints, or the disk has no room
            for another one.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        with processes.all_or_none():
            if processes.is_main():
                room.require(self._folder, like, len(steps))
        # An eventually consistent file system could show processes different steps.
        newest = steps[0] if steps else None
        processes.require_equal("the newest checkpoint", f"of step {newest}")
        reasons: dict[int, str] = {}
        for step in steps:
            state, reason = None, ""
            with processes.all_or_none():
                try:
                    state = self._restore(step, like, sharding, config_hash)
                except CheckpointDamaged as error:
                    reason = str(error)
            reason = next(filter(None, processes.gather_texts(reason)), "")
            if not reason:
                self._move_aside(reasons)
                _LOG.info("Resuming from the checkpoint of step %d.", step)
                return state
            reasons[step] = reason
            _LOG.error("%s", reason)
        if reasons:
            raise CheckpointError(
                f"checkpoints in {self._folder}: none is intact. Start anew in another "
                "workdir, or bring one back from a copy; the newest: "
                f"{next(iter(reasons.values()))}"
            )
        return None

    def _move_aside(self, reasons: dict[int, str]) -> None:
        if not reasons:
            return
        if processes.is_main():
            for step in reasons:
                target = orbax_paths.move_aside(self._folder / str(step))
                _LOG.warning(
                    "The damaged checkpoint of step %d is now %s.", step, target
                )
        processes.barrier()
        self._manager.reload()
        self._find_best()

    def _restore(
        self, step: int, like: State, sharding: State, config_hash: str
    ) -> State:
        folder = self._folder / str(step)
        description = read_description(folder)
        sums = description.get("checksums", {})
        if not (folder / "state").exists():
            if "step" in sums:
                raise damage.damaged(folder, "its item state is lost")
            raise CheckpointError(
                f"checkpoint {folder}: holds imported weights and no state of a "
                "pretraining to resume; use a new workdir"
            )
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding
            ),
            _fields(like),
            _fields(sharding),
        )
        changed = description.get("config_hash") != config_hash
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        items = damage.read(
            folder,
            "state",
            lambda: self._manager.restore(step, args=args),
            changed=changed,
        )
        if self._with_checksums:
            damage.compare(folder, items["state"], sums)
        return type(like)(**items["state"])

    def check(self) -> None:
        """Looks whether a save failed that runs beside the training; takes no time.

        Raises:
          CheckpointError: one did.
          RunFailed: the directory is no longer this process's.
        """
        if self._owner is not None:
            self._owner.check()
        with self._saving():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when every save so far is complete.

        Raises:
          CheckpointError: one failed.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves and frees the threads.

        Does nothing after a save that failed, of which Orbax's threads wait for minutes
        for each other.

        Raises:
          CheckpointError: a save failed.
        """
        if not self._failed:
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
            self._failed = True
            raise CheckpointError(
                f"checkpoints in {self._folder}: one cannot be saved "
                f"({damage.reason(error, self._folder)}); earlier ones are unchanged"
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


def _sealed(description: dict[str, Any], step: int) -> dict[str, Any]:
    """A description with the step and with a checksum of all of it."""
    content = {**description, "step": step}
    return {**content, "checksum": checksums.of_text(_canonical(content))}


def _canonical(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True)


def open_for_reading(
    workdir: str, step: int | None, folder_name: str | None = None
) -> tuple[epath.Path, int]:
    """Finds a checkpoint of a run to read.

    Args:
      workdir: the run directory.
      step: the newest one where None.
      folder_name: of an earlier plan; that of the plan in force where None.

    Returns:
      (its folder, its step).

    Raises:
      CheckpointNotFound: there is none.
    """
    paths.check_reachable(workdir, flag="workdir")
    folder = plans.folder_in_force(workdir)
    if folder_name is not None:
        folder = folder.with_name(folder_name)
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
      CheckpointDamaged: the file is not what was saved.
      CheckpointError: it cannot be reached.
    """
    description = damage.read(
        checkpoint, "description", lambda: _description_in(checkpoint)
    )
    # Descriptions of earlier versions have neither sums of arrays nor one of their own.
    is_sealed = not description.keys().isdisjoint(("checksum", "checksums"))
    expected = description.pop("checksum", None)
    if is_sealed and expected != checksums.of_text(_canonical(description)):
        why = "item description: is not what was saved: checksum"
        raise damage.damaged(checkpoint, why)
    return description


def _description_in(checkpoint: epath.Path) -> dict[str, Any]:
    complete = orbax_paths.temporary_path_class(checkpoint.parent)
    with ocp.Checkpointer(
        ocp.JsonCheckpointHandler(), temporary_path_class=complete
    ) as checkpointer:
        description = checkpointer.restore(checkpoint / "description")
    if not isinstance(description, dict) or description.keys().isdisjoint(_MARKS):
        raise ValueError("is not one")
    return description


def read_variables(
    checkpoint: epath.Path,
    item: str,
    like: Tree,
    sharding: Sharding,
    expected: dict[str, str],
) -> Tree:
    """The item `encoder` or `heads` of a checkpoint folder.

    Args:
      checkpoint: from `open_for_reading`.
      item: its name.
      like: arrays or shapes to expect.
      sharding: of every array of the result.
      expected: `checksums` of the description; empty to compare nothing.

    Raises:
      CheckpointDamaged: the files are not what was saved.
      CheckpointError: they cannot be reached.
    """
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
    )

    def restored() -> Tree:
        with ocp.StandardCheckpointer(
            temporary_path_class=orbax_paths.temporary_path_class(checkpoint.parent)
        ) as checkpointer:
            return checkpointer.restore(checkpoint / item, target)

    tree = damage.read(checkpoint, item, restored)
    encoders = item == "encoder"
    named = {
        name: {"encoder": part} if encoders else part for name, part in tree.items()
    }
    damage.compare(checkpoint, named, expected)
    return tree
