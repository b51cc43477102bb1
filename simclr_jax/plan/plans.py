"""The figures of a plan, as data."""

import dataclasses

from simclr_jax.plan.program import Program
from simclr_jax.plan.roofline import Roofline
from simclr_jax.plan.search import LargestBatch

Range = tuple[float, float]  # low, high


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
      available: HBM that programs can use.
      peak: the most that is in use at a time, the program's code included; where the
        program does not fit, what the compiler said it needs, or None.
      arguments: state and batch, with the padding of their layouts.
      state: parameters, statistics and optimiser state, without padding.
      batch: images and labels, or z, or the dataset that the device makes its batches
        of; without padding.
      outputs: of which `aliased` lie where arguments lay.
      aliased: donated arguments.
      temporaries: activations, gradients and the like.
      code: of the program.
    """

    available: float
    peak: float | None = None
    arguments: float | None = None
    state: float | None = None
    batch: float | None = None
    outputs: float | None = None
    aliased: float | None = None
    temporaries: float | None = None
    code: float | None = None


@dataclasses.dataclass(frozen=True)
class PartCost:
    """What a part of the work takes, compiled by itself.

    Attributes:
      compile_seconds: on this machine.
      flops: of each device, matrix products and convolutions.
      hbm_bytes: of each device.
      collectives: how many.
      collective_bytes: of all of them together.
      temporaries: bytes on each device.
      seconds: low and high.
    """

    compile_seconds: float
    flops: float
    hbm_bytes: float
    collectives: int
    collective_bytes: float
    temporaries: float
    seconds: Range


@dataclasses.dataclass(frozen=True)
class Training:
    """The config's whole run, from fastest to slowest of its roofline.

    Attributes:
      steps: of the schedule.
      epochs: of the schedule.
      images_per_second: of the global batch, each image counted once.
      hours: of steps alone: no start, evaluation or waiting for images.
      chip_hours: of all chips of the slice together.
      model_flops_utilisation: shares of the chips' peak that `model_flops` would reach.
    """

    steps: int
    epochs: float
    images_per_second: Range
    hours: Range
    chip_hours: Range
    model_flops_utilisation: Range


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one program needs on one slice.

    Attributes:
      program_name: 'train step' or 'loss'.
      topology: the slice's name.
      chips: in the slice.
      devices: JAX devices in the slice.
      batch_size: images in the global batch.
      fits: whether the compiler accepts the program.
      memory: of each device.
      verdict: the compiler's words if it does not; of a program that does, why training
        with `parallel.remat = "auto"` would warn that it may not.
      compile_seconds: on this machine.
      remat: the step's `parallel.remat`, the level that was chosen if the config leaves
        it open; None for the loss alone.
      too_large: levels that were tried before and do not fit, with the bytes that each
        device would need, where the compiler tells them.
      program: what each device does; this and what follows is None if it does not fit.
      reported: XLA's own cost analysis, with loop bodies counted once.
      moves_images: whether a collective sends whole images between devices.
      model_flops: of the global batch; None for the loss alone.
      roofline: times of a step.
      step_seconds: its low and high end.
      estimated_seconds: the compiler's own estimate, without what overlaps computation;
        None where its program carries none, or the chip's clock is not known.
      training: None for the loss alone.
      views: the share of the step that makes them, if the accelerator does.
      diagnostics: what a step that is logged takes on top; None for the loss alone.
      largest_batch: where it was asked for.
    """

    program_name: str
    topology: str
    chips: int
    devices: int
    batch_size: int
    fits: bool
    memory: Memory
    verdict: str | None = None
    compile_seconds: float | None = None
    remat: str | None = None
    too_large: dict[str, float | None] = dataclasses.field(default_factory=dict)
    program: Program | None = None
    reported: dict[str, float] | None = None
    moves_images: bool | None = None
    model_flops: float | None = None
    roofline: Roofline | None = None
    step_seconds: Range | None = None
    estimated_seconds: float | None = None
    training: Training | None = None
    views: PartCost | None = None
    diagnostics: PartCost | None = None
    largest_batch: LargestBatch | None = None
