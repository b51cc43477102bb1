"""Steps that are not finite: which layer blew up, and how to go on without them."""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from simclr_jax import optim
from simclr_jax.errors import TrainingDiverged
from simclr_jax.models.simclr import Tree
from simclr_jax.training.objectives import Metrics

_LOG = logging.getLogger(__name__)

# One array: the squared sums of each gradient, each update and each of BatchNorm's
# statistics, in the order of their trees.
SUMS = "squared_sums"
# 1 for a step that was left out; where `optimizer.on_nonfinite` is 'skip'.
_SKIPPED = "skipped"
_NUM_NAMED = 3
# A dataclass with `step` and `opt_state`: `step.TrainState`.
_State = TypeVar("_State", bound=Any)


@jax.named_scope("diagnostics")
def norms(grads: Tree, updates: Tree, batch_stats: Tree) -> Metrics:
    """Global norms, and the sums by layer that tell where values are not finite.

    Args:
      grads: as computed, before any clipping.
      updates: of the parameters.
      batch_stats: after the step.

    Returns:
      `gradient_norm` and `update_norm`, float32 scalars, and `SUMS`.
    """
    trees = [jax.tree.leaves(tree) for tree in (grads, updates, batch_stats)]
    sums = _squared_sums([leaf for leaves in trees for leaf in leaves])
    gradient, update, _ = jnp.split(sums, np.cumsum([len(t) for t in trees[:2]]))
    return {
        "gradient_norm": jnp.sqrt(jnp.sum(gradient)),
        "update_norm": jnp.sqrt(jnp.sum(update)),
        SUMS: sums,
    }


def _squared_sums(leaves: Sequence[jax.Array]) -> jax.Array:
    """The sum of squares of each array, [number of arrays]."""
    # The vectors of one length are summed at once: a step has hundreds of them, and an
    # operation takes longer to start than to sum one.
    groups: dict[Any, list[int]] = {}
    for number, leaf in enumerate(leaves):
        key = leaf.shape if leaf.ndim < 2 else (number, *leaf.shape)
        groups.setdefault(key, []).append(number)
    sums = []
    for numbers in groups.values():
        group = jnp.stack([leaves[number] for number in numbers])
        sums.append(jnp.sum(jnp.square(group), axis=tuple(range(1, group.ndim))))
    order = [number for numbers in groups.values() for number in numbers]
    return jnp.concatenate(sums)[np.argsort(order)]


def skip_nonfinite(
    old: _State, new: _State, metrics: Metrics
) -> tuple[_State, Metrics]:
    """The old state at the new step, unless everything about the new one is finite.

    Parameters, BatchNorm statistics and moments stay; the schedule goes on.
    """
    scalars = [value for name, value in metrics.items() if _is_watched(name)]
    statistics = metrics[SUMS][_num_squares(new.params) :]
    watched = jnp.concatenate([jnp.stack(scalars), statistics])
    finite = jnp.all(jnp.isfinite(watched))
    kept = jax.tree.map(
        lambda before, after: jnp.where(finite, after, before), old, new
    )
    opt_state = optim.at_step(kept.opt_state, new.step)
    kept = dataclasses.replace(kept, step=new.step, opt_state=opt_state)
    return kept, {**metrics, _SKIPPED: 1.0 - finite}


def _is_watched(name: str) -> bool:
    return name == "loss" or name.endswith(("_loss", "_norm"))


def _num_squares(params: Tree) -> int:
    return 2 * len(jax.tree.leaves(params))


class Guard:
    """Ends a run at a step that is not finite, or counts the steps left out."""

    def __init__(
        self, config: config_dict.ConfigDict, state: Any, skipped_steps: int = 0
    ) -> None:
        """Notes the names of the layers.

        Args:
          config: of the run.
          state: a `step.TrainState`; its arrays are not kept.
          skipped_steps: left out before this start.
        """
        self._params = _names(state.params)
        self._statistics = _names(state.batch_stats)
        self._max_skipped = config.optimizer.max_skipped_steps
        self._skipped_steps, self._in_a_row = skipped_steps, 0

    def check(self, done: int, metrics: Mapping[str, Any]) -> dict[str, float] | None:
        """Takes the metrics of update number `done`, as NumPy values.

        Returns:
          The scalars to log; None for a step that was left out.

        Raises:
          TrainingDiverged: something is not finite, and the step was not left out, or
            is one too many in a row.
        """
        values = {name: float(v) for name, v in metrics.items() if name != SUMS}
        sums = np.asarray(metrics[SUMS])
        skips = _SKIPPED in values
        skipped = bool(values.pop(_SKIPPED, 0.0))
        watched = {name: v for name, v in values.items() if _is_watched(name)}
        statistics = sums[2 * len(self._params) :]
        if not skipped and np.isfinite([*watched.values(), *statistics]).all():
            self._in_a_row = 0
            return {**values, "skipped_steps": self._skipped_steps} if skips else values
        what = f"step {done}: {self._explain(watched, sums)}"
        if not skipped:
            raise TrainingDiverged(
                f"{what}. Training has diverged; earlier checkpoints are good. Try a "
                "lower config.optimizer.learning_rate, a longer warm-up or "
                "config.optimizer.clip_norm; config.optimizer.on_nonfinite='skip' "
                "leaves out single steps"
            )
        self._in_a_row += 1
        self._skipped_steps += 1
        if self._in_a_row > self._max_skipped:
            raise TrainingDiverged(
                f"{what}. That is step {self._in_a_row} in a row, more than "
                f"config.optimizer.max_skipped_steps={self._max_skipped}; earlier "
                "checkpoints are good"
            )
        _LOG.warning("%s. Left out; skipped steps: %d", what, self._skipped_steps)
        return None

    def _explain(self, watched: Mapping[str, float], sums: np.ndarray) -> str:
        bad = [f"{name} is {v}" for name, v in watched.items() if not math.isfinite(v)]
        good = [
            f"{name} {v:.4g}"
            for name, v in watched.items()
            if math.isfinite(v) and not name.endswith("_norm")
        ]
        finite = f" (finite: {', '.join(good)})" if bad and good else ""
        where = self._first_layers(sums)
        return "; ".join(filter(None, [", ".join(bad) + finite, *where]))

    def _first_layers(self, sums: np.ndarray) -> list[str]:
        """Where values are not finite, in words, for each kind of them."""
        count = len(self._params)
        norms = np.sqrt(sums)
        kinds = (
            ("BatchNorm statistics", self._statistics, norms[2 * count :]),
            ("gradients", self._params, norms[:count]),
            ("updates", self._params, norms[count : 2 * count]),
        )
        found = []
        for kind, names, values in kinds:
            order = sorted(range(len(names)), key=lambda n: _position(names[n]))
            bad = [n for n in order if not math.isfinite(values[n])]
            if len(bad) == len(names) > _NUM_NAMED:
                found.append(f"all {kind} are not finite")
            elif bad:
                found.append(f"{kind} not finite: {_listed(names, values, bad)}")
        if found:
            return found
        # All are finite, and their sum is too large.
        largest = sorted(range(count), key=lambda n: -sums[n])
        return [f"largest gradients: {_listed(self._params, norms, largest)}"]


def _listed(names: Sequence[str], values: np.ndarray, numbers: list[int]) -> str:
    first = [f"{names[n]} ({values[n]:.3g})" for n in numbers[:_NUM_NAMED]]
    more = len(numbers) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _names(tree: Tree) -> list[str]:
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _position(name: str) -> list[tuple[int, bool, str]]:
    """Sorts the names of layers in the order of the forward pass."""
    return [_position_of_part(part) for part in name.split("/")]


def _position_of_part(part: str) -> tuple[int, bool, str]:
    number = re.search(r"\d+", part)
    place = int(number[0]) if number else 0
    # Their names have no number that would say where they come.
    place += {"stem": -1, "shortcut": -1, "se": 99, "expand": 1}.get(part, 0)
    return place, "bn" in part, part
