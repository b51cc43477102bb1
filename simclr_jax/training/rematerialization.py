"""`parallel.remat = "auto"`: the least rematerialisation whose step fits the devices.

Levels are tried from the least to the most, by the compiler's analysis of memory. The
first that fits on all processes runs, and is recorded in the run directory, so that the
same training on the same devices goes on with the same program after a restart.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import config_dict

from simclr_jax import models, paths
from simclr_jax.config import identity
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic
from simclr_jax.training import arithmetic, out_of_memory
from simclr_jax.training.step import StepParts

_LOG = logging.getLogger(__name__)
AUTO = "auto"
FILE_NAME = "remat.json"
LEVELS = tuple(models.REMATERIALIZATIONS)  # the least first
# Keys that change the program, and not the experiment that `config_hash` identifies.
_KEYS = (
    "loss.form",
    "optimizer.on_nonfinite",
    "parallel.deterministic",
    "parallel.shard_state",
)

Step = Callable[..., Any]


def with_level(parts: StepParts, level: str) -> StepParts:
    """The parts of the same step, which computes as much again as a level says."""
    encoder = parts.model.encoder.clone(remat=level)
    return dataclasses.replace(
        parts, model=dataclasses.replace(parts.model, encoder=encoder)
    )


def fitting(
    make_step: Callable[[StepParts], Step],
    parts: StepParts,
    config: config_dict.ConfigDict,
    workdir: epath.Path | None = None,
) -> Step:
    """The jitted step with the config's rematerialisation.

    Args:
      make_step: makes the jitted step of these parts.
      parts: of the step.
      config: resolved.
      workdir: the run directory, which keeps the level that is chosen; None: not kept.

    Returns:
      With `parallel.remat = "auto"`, a function that chooses in its first call, which
      compiles; every process has to call it. CPUs, which tell no limit of their
      memory, keep everything. Where no step fits the last one runs, with a warning.
      Where memory runs out RunFailed says what is needed and what would fit.
    """
    limit = out_of_memory.device_limit()
    if config.parallel.remat != AUTO:
        return out_of_memory.explained(make_step(parts), config)
    if limit is None:
        step = make_step(with_level(parts, LEVELS[0]))
        return out_of_memory.explained(step, config, lambda: _next(LEVELS[0]))
    choosing = _FittingStep(
        lambda level: make_step(with_level(parts, level)), config, workdir, limit
    )
    return out_of_memory.explained(choosing, config, lambda: _next(choosing.level))


def _next(level: str) -> str:
    """What to set by hand where the level that was chosen runs out of memory."""
    left = LEVELS[LEVELS.index(level) + 1 :]
    if not left:
        return ""
    return (
        f"--config.parallel.remat={left[0]} needs less than {level!r}, which 'auto' "
        "chose"
    )


class _FittingStep:
    """A step that is compiled for the arguments of its first call.

    Attributes:
      level: that was chosen, or is being tried.
    """

    def __init__(
        self,
        make_step: Callable[[str], Any],
        config: config_dict.ConfigDict,
        workdir: epath.Path | None,
        limit: int,
    ) -> None:
        self._make_step = make_step
        self._config = config
        self._path = workdir and workdir / FILE_NAME
        self._limit = limit
        self._compiled: Step | None = None
        self.level = LEVELS[0]

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            self._compiled = self._choose(arguments)
        return self._compiled(*arguments)

    def lower(self, *shapes: Any) -> Any:
        """The step of the level, lowered: for messages about memory."""
        return self._make_step(self.level).lower(*shapes)

    def _choose(self, arguments: tuple[Any, ...]) -> Step:
        shapes = out_of_memory.shapes_of(arguments)
        first = LEVELS.index(self._recorded() or LEVELS[0])
        told: list[str] = []
        flops: list[float] = []
        for self.level in LEVELS[first:]:
            step = self._make_step(self.level)
            traced = step.trace(*shapes)
            flops.append(arithmetic.flops(traced.jaxpr.jaxpr))
            compiled, needed = self._compile(traced.lower())
            # Another process may have less memory, and the programs must be the same.
            if all(text == "fits" for text in processes.gather_texts(needed)):
                self._record(self.level)
                self._tell(LEVELS[first], told, flops)
                assert compiled is not None
                return compiled
            told.append(f"{self.level!r} {needed}")
        _LOG.warning("config.parallel.remat='auto': no step fits (%s)", ", ".join(told))
        return compiled or step

    def _compile(self, lowered: Any) -> tuple[Step | None, str]:
        """(the program where it can be compiled, 'fits' or what it would need)."""
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None, "does not fit"
        memory = compiled.memory_analysis()
        if memory is None:  # The compiler took it, and tells no more.
            return compiled, "fits"
        needed = out_of_memory.needed_bytes(memory)
        if needed <= out_of_memory.usable(self._limit):
            return compiled, "fits"
        return compiled, f"needs {out_of_memory.gib(needed)}"

    def _tell(self, first: str, told: list[str], flops: list[float]) -> None:
        price = ""
        if told:
            more = 100 * (flops[-1] / flops[0] - 1)
            price = f"; {more:.1f} % more arithmetic than {first!r}"
        _LOG.info(
            "config.parallel.remat='auto': %r, the least that fits in %s of a device's "
            "%s%s%s",
            self.level,
            out_of_memory.gib(out_of_memory.usable(self._limit)),
            out_of_memory.gib(self._limit),
            f" ({', '.join(told)})" if told else "",
            price,
        )

    def _program(self) -> dict[str, Any]:
        """What the choice depends on."""
        settings = identity.flatten(self._config)
        return {
            **{key: settings[key] for key in _KEYS},
            "config_hash": identity.config_hash(identity.as_json(self._config)),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "jax": jax.__version__,
        }

    def _recorded(self) -> str | None:
        """The level that this training chose before, on such devices."""
        text = ""
        if self._path and processes.is_main():
            try:
                content = json.loads(self._path.read_text(encoding="utf-8"))
                if content["program"] == self._program() and content["level"] in LEVELS:
                    text = content["level"]
            except Exception as error:
                # Without a record, or with a damaged one, the choice is made again.
                damaged = isinstance(error, ValueError | KeyError | TypeError)
                if not damaged and not paths.is_failure(error):
                    raise
        return processes.gather_texts(text)[0] or None

    def _record(self, level: str) -> None:
        if self._path and processes.is_main():
            content = {"level": level, "program": self._program()}
            atomic.write_file(self._path, json.dumps(content, indent=1) + "\n")
