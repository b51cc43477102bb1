"""From a compiled program to the figures of its plan."""

import dataclasses
import math
from typing import Any

import jax
from ml_collections import config_dict

from simclr_jax.errors import RunFailed
from simclr_jax.plan import model_flops
from simclr_jax.plan.datasets import Dataset
from simclr_jax.plan.plans import Memory, PartCost, Plan, Training
from simclr_jax.plan.program import Program, analyse
from simclr_jax.plan.roofline import Roofline, roofline
from simclr_jax.plan.topologies import Chip, Topology
from simclr_jax.training import build, objectives


def add_figures(
    plan: Plan,
    compiled: jax.stages.Compiled,
    config: config_dict.ConfigDict,
    topology: Topology,
    dataset: Dataset | None,
) -> Plan:
    """The plan with all figures of the compiled program.

    Args:
      plan: names what was compiled, and the memory that is available.
      compiled: the program.
      config: resolved, with the plan's batch size.
      topology: the plan's.
      dataset: the training images; None for the loss alone.

    Raises:
      RunFailed: the compiler reports no memory.
    """
    text, cost = compiled.as_text(), compiled.cost_analysis()
    if text is None or cost is None:
        raise RunFailed(f"{plan.topology}: the compiler does not describe its program")
    program = analyse(text, num_devices=topology.devices)
    times = roofline(program, topology)
    plan = dataclasses.replace(
        plan,
        fits=True,
        memory=_memory(compiled, plan.memory.available),
        program=program,
        reported={"flops": cost["flops"], "bytes": cost["bytes accessed"]},
        moves_images=any(
            _is_image(collective.dims, config.image_size)
            for collective in program.collectives
        ),
        roofline=times,
        step_seconds=(times.low, times.high),
        estimated_seconds=estimated_seconds(program, topology.chip),
    )
    if dataset is None:
        return plan
    flops = _model_flops(config)
    training = _training(config, topology, dataset, times, flops)
    return dataclasses.replace(plan, model_flops=flops, training=training)


def estimated_seconds(program: Program, chip: Chip) -> float | None:
    """The compiler's estimate of a program's time; None where it cannot be told."""
    if program.cycles is None or chip.clock is None:
        return None
    return program.cycles / chip.clock


def part_cost(
    compiled: jax.stages.Compiled, topology: Topology, *, compile_seconds: float
) -> PartCost:
    """The figures of a compiled part of the work."""
    text = compiled.as_text()
    if text is None:
        raise RunFailed(f"{topology.name}: the compiler does not describe its program")
    program = analyse(text, num_devices=topology.devices)
    times = roofline(program, topology)
    return PartCost(
        compile_seconds=compile_seconds,
        flops=program.mxu_flops,
        hbm_bytes=program.hbm_bytes,
        collectives=sum(c.count for c in program.collectives),
        collective_bytes=program.collective_bytes,
        temporaries=memory_analysis(compiled).temp_size_in_bytes,
        seconds=(times.low, times.high),
    )


def memory_analysis(compiled: jax.stages.Compiled) -> Any:
    """The compiler's figures of memory; RunFailed where it has none."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RunFailed("the compiler does not report the memory of its program")
    return analysis


def _memory(compiled: jax.stages.Compiled, available: float) -> Memory:
    analysis = memory_analysis(compiled)
    *state, batch = (
        sum(map(_device_bytes, jax.tree.leaves(argument)))
        for argument in _with_shardings(compiled)
    )
    return Memory(
        available=available,
        peak=analysis.peak_memory_in_bytes,
        arguments=analysis.argument_size_in_bytes,
        state=sum(state),
        batch=batch,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def _with_shardings(compiled: jax.stages.Compiled) -> list[Any]:
    """The positional arguments, as trees of shapes on devices."""
    arguments, _ = compiled.args_info
    shardings, _ = compiled.input_shardings
    return [
        jax.tree.map(
            lambda info, sharding: jax.ShapeDtypeStruct(
                info.shape, info.dtype, sharding=sharding
            ),
            argument,
            sharding,
        )
        for argument, sharding in zip(arguments, shardings, strict=True)
    ]


def _device_bytes(array: jax.ShapeDtypeStruct) -> int:
    if array.sharding is None:
        return 0  # labels that nothing uses are no argument of the program
    part = array.sharding.shard_shape(array.shape)
    return math.prod(part) * array.dtype.itemsize


def _is_image(dims: tuple[int, ...], image_size: int) -> bool:
    return dims.count(image_size) >= 2 and 3 in dims


def _model_flops(config: config_dict.ConfigDict) -> float:
    model = build.make_model(config, num_classes=None)
    return model_flops.step_flops(
        model_flops.forward_flops(model, image_size=config.image_size),
        num_views=objectives.NUM_VIEWS * config.batch.batch_size,
        output_dim=config.head.output_dim,
    )


def _training(
    config: config_dict.ConfigDict,
    topology: Topology,
    dataset: Dataset,
    times: Roofline,
    flops: float,
) -> Training:
    steps, batch_size = config.schedule.train_steps, config.batch.batch_size
    hours = (steps * times.low / 3600, steps * times.high / 3600)
    peak = topology.chips * topology.chip.bf16_flops
    return Training(
        steps=steps,
        epochs=steps / (dataset.num_examples // batch_size),
        images_per_second=(batch_size / times.high, batch_size / times.low),
        hours=hours,
        chip_hours=(hours[0] * topology.chips, hours[1] * topology.chips),
        model_flops_utilisation=(
            flops / peak / times.high,
            flops / peak / times.low,
        ),
    )
