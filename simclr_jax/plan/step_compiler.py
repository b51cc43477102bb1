"""Compiles a config's train step for TPU slices and collects its figures."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import resolve, rules
from simclr_jax.errors import ConfigError
from simclr_jax.models import normalization
from simclr_jax.plan import datasets, lowering, search, topologies, tpu_compiler
from simclr_jax.plan.figures import add_figures, memory_analysis, part_cost
from simclr_jax.plan.plans import Memory, PartCost, Plan
from simclr_jax.plan.topologies import Topology
from simclr_jax.training import out_of_memory, rematerialization, step


def make_step_compiler(
    config: config_dict.ConfigDict,
    *,
    loss_only: bool,
    num_examples: int | None,
    num_classes: int | None,
    report: Callable[[str], None],
) -> "StepCompiler":
    """Checks the config and finds out about its dataset.

    Args:
      config: as in `configs/base.py`.
      loss_only: plan the loss and its gradient, not the train step.
      num_examples: overrides the dataset's.
      num_classes: overrides the dataset's.
      report: takes lines of progress.

    Raises:
      ConfigError: a value cannot be right, or the dataset's size is not known.
    """
    rules.validate(config)
    if config.encoder.normalization == normalization.MEASURED:
        config = config.copy_and_resolve_references()
        config.encoder.normalization = "0.5"  # any numbers cost the same
    dataset = None
    if not loss_only:
        dataset = datasets.describe(
            config, num_examples=num_examples, num_classes=num_classes
        )
    return StepCompiler(config, dataset, report)


@dataclasses.dataclass(frozen=True)
class StepCompiler:
    """Plans for one config.

    Attributes:
      config: valid, not resolved.
      dataset: the training images; None for the loss alone, which needs none.
      report: takes lines of progress.
    """

    config: config_dict.ConfigDict
    dataset: datasets.Dataset | None
    report: Callable[[str], None]

    def check(self, topology: Topology) -> None:
        """Finds out what pretraining would refuse, before minutes of compilation.

        Raises:
          ConfigError: the config cannot run on so many devices.
        """
        resolved = self._resolve(self.config.batch.batch_size)
        if self.dataset is not None:
            rules.check_devices(resolved, topology.devices, "batch")
            if self._dataset_shape() is None and self._on_accelerator():
                raise ConfigError(
                    "config.augment.placement='accelerator': the images of "
                    f"{resolved.data.dataset} are not known to have one size"
                )
            # Raises where the objective and the labels do not go together.
            step.pretraining_parts(resolved, num_classes=self.dataset.num_classes)
        elif resolved.batch.batch_size % topology.devices:
            raise ConfigError(
                f"config.batch.batch_size={resolved.batch.batch_size}: must be "
                f"divisible by the {topology.devices} devices of {topology.name}"
            )

    def plan(self, topology: Topology, *, largest_batch: bool = False) -> Plan:
        """Compiles for one slice.

        Args:
          topology: checked.
          largest_batch: also look for the largest batch that fits.
        """
        devices = topologies.open_devices(topology)
        batch_size = self.config.batch.batch_size
        plans: dict[int, Plan] = {}

        def try_batch(batch_size: int) -> search.Probe:
            if batch_size not in plans:
                plans[batch_size] = self._compile(topology, devices, batch_size)
            tried = plans[batch_size]
            return search.Probe(batch_size, tried.fits, tried.memory.peak)

        try_batch(batch_size)
        if not largest_batch:
            return plans[batch_size]
        found = search.largest_batch(
            try_batch,
            start=batch_size,
            unit=self._unit(topology),
            limit=self.dataset.num_examples if self.dataset else None,
        )
        return dataclasses.replace(plans[batch_size], largest_batch=found)

    def _unit(self, topology: Topology) -> int:
        """What batch sizes must be multiples of."""
        if self.dataset is None:
            return topology.devices
        return rules.batch_unit(self.config, topology.devices)

    def about(self, libtpu: str) -> dict[str, Any]:
        """The inputs of the plans, for `report.as_json`."""
        return {
            "config": self.config.to_dict(),
            "dataset": self.dataset and dataclasses.asdict(self.dataset),
            "jax": jax.__version__,
            "libtpu": libtpu,
        }

    def _resolve(self, batch_size: int) -> config_dict.ConfigDict:
        config = self.config.copy_and_resolve_references()
        config.batch.batch_size = batch_size
        examples = batch_size if self.dataset is None else self.dataset.num_examples
        return resolve.resolve(config, num_examples=examples)

    def _on_accelerator(self) -> bool:
        return self.config.augment.placement == "accelerator"

    def _dataset_shape(self) -> tuple[int, int, int] | None:
        """(N, H, W) of the training images, where they have one size."""
        if self.dataset is None or self.dataset.image_shape is None:
            return None
        return (self.dataset.num_examples, *self.dataset.image_shape)

    def _compile_part(
        self, name: str, topology: Topology, lowered: jax.stages.Lowered
    ) -> PartCost:
        start = time.monotonic()
        label = f"compiling the {name} for {topology.name}"
        compiled = tpu_compiler.compile_program(lowered, label, self.report)
        seconds = time.monotonic() - start
        return part_cost(compiled, topology, compile_seconds=seconds)

    def _compile_parts(
        self,
        topology: Topology,
        config: config_dict.ConfigDict,
        mesh: Mesh,
        step: jax.stages.Lowered,
    ) -> tuple[PartCost, PartCost | None]:
        """The diagnostics, and the views where accelerators make them."""
        lowered = lowering.lower_diagnostics(config, mesh, step)
        diagnostics = self._compile_part("diagnostics", topology, lowered)
        if config.augment.placement == "host":
            return diagnostics, None
        lowered = lowering.lower_views(
            config, mesh, dataset_shape=self._dataset_shape()
        )
        return diagnostics, self._compile_part("views", topology, lowered)

    def _compile(self, topology: Topology, devices: list[Any], batch_size: int) -> Plan:
        """With the least rematerialisation that fits, if the config leaves it open."""
        config = self._resolve(batch_size)
        if self.dataset is None or config.parallel.remat != rematerialization.AUTO:
            return self._compile_config(topology, devices, config)
        too_large: dict[str, float | None] = {}
        for level in rematerialization.LEVELS:
            config.parallel.remat = level
            plan = self._compile_config(
                topology, devices, config, too_large=dict(too_large)
            )
            if plan.fits:
                return plan
            too_large[level] = plan.memory.peak
        return plan

    def _compile_config(
        self,
        topology: Topology,
        devices: list[Any],
        config: config_dict.ConfigDict,
        too_large: dict[str, float | None] | None = None,
    ) -> Plan:
        """The plan of a resolved config.

        Args:
          topology: the slice.
          devices: of the slice.
          config: resolved.
          too_large: the levels of rematerialisation that were tried before; then the
            step has to fit as training asks for it. See `Plan`.
        """
        batch_size = config.batch.batch_size
        mesh = parallel.create_mesh(devices)
        name = "loss" if self.dataset is None else "train step"
        label = f"compiling the {name} for {topology.name}, batch {batch_size}"
        if too_large is not None:
            label += f", parallel.remat {config.parallel.remat!r}"
        self.report(label)
        start = time.monotonic()
        if self.dataset is None:
            lowered = lowering.lower_loss(config, mesh)
        else:
            lowered = lowering.lower(
                config,
                mesh,
                num_classes=self.dataset.num_classes,
                dataset_shape=self._dataset_shape(),
            )
        available = tpu_compiler.available_memory(devices[0])
        plan = Plan(
            program_name=name,
            topology=topology.name,
            chips=topology.chips,
            devices=topology.devices,
            batch_size=batch_size,
            fits=False,
            memory=Memory(available),
            remat=None if self.dataset is None else config.parallel.remat,
            too_large=too_large or {},
        )
        try:
            compiled = tpu_compiler.compile_program(lowered, label, self.report)
            tight = None if too_large is None else _lacks_room(compiled, available)
            # Training tries the last level whatever room it leaves, with a warning.
            if tight and config.parallel.remat != rematerialization.LEVELS[-1]:
                raise tight
        except tpu_compiler.DoesNotFit as verdict:
            memory = Memory(available, verdict.needed)
            plan = dataclasses.replace(plan, verdict=verdict.words, memory=memory)
            outcome = f"does not fit ({verdict.words})"
        else:
            plan = add_figures(plan, compiled, config, topology, self.dataset)
            outcome = "done"
            if tight:
                plan = dataclasses.replace(plan, verdict=tight.words)
                outcome = f"no step fits ({tight.words})"
            if self.dataset is not None:
                diagnostics, views = self._compile_parts(
                    topology, config, mesh, lowered
                )
                plan = dataclasses.replace(plan, diagnostics=diagnostics, views=views)
        seconds = time.monotonic() - start
        self.report(f"{label}: {outcome} in {seconds:.0f} s")
        return dataclasses.replace(plan, compile_seconds=seconds)


def _lacks_room(
    compiled: jax.stages.Compiled, available: float
) -> tpu_compiler.DoesNotFit | None:
    """Why training with `parallel.remat = "auto"` would try the next level, if so."""
    needed = out_of_memory.needed_bytes(memory_analysis(compiled))
    usable = out_of_memory.usable(available, "tpu")
    if needed <= usable:
        return None
    return tpu_compiler.DoesNotFit(
        f"{out_of_memory.gib(needed)} of {out_of_memory.gib(available)}, of which "
        f"a step may fill {out_of_memory.gib(usable)}",
        needed,
        available,
    )
