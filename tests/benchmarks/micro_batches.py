"""Memory, time and exactness of micro-batches on this machine's CPU.

    python tests/benchmarks/micro_batches.py

A ResNet-18 of half width, 32 pixels, batch 256. Temporaries are the compiler's; seconds
are of processor time, steps in turn, medians; errors are those of the gradient against
the whole batch's, with fixed BatchNorm statistics: |difference| / |gradient| over all
parameters, and the largest of one array of them.
"""

import dataclasses
import functools
import os
import pathlib
import statistics
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np

from simclr_jax import models, parallel
from simclr_jax.config import resolve
from simclr_jax.configs import smoke
from simclr_jax.training import compiling, micro_batches, step

BATCH, SIZE, CLASSES, ROUNDS = 256, 32, 10, 3
MICRO_BATCHES = (None, 64, 32)


class Frozen(models.SimCLR):
    """The model with the running BatchNorm statistics, also in training."""

    def apply(
        self, params: Any, batch_stats: Any, images: jax.Array, *, train: bool
    ) -> Any:
        del train
        return super().apply(params, batch_stats, images, train=False)


def make_parts(micro_batch_size: int | None) -> step.StepParts:
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": SIZE,
            "encoder.width": 0.5,
            "batch.batch_size": BATCH,
            "batch.micro_batch_size": micro_batch_size,
        }
    )
    config = resolve.resolve(config, num_examples=10 * BATCH)
    mesh = parallel.create_mesh(jax.devices()[:1])
    return step.pretraining_parts(config, num_classes=CLASSES, mesh=mesh)


def frozen_gradient(parts: step.StepParts, state: step.TrainState, batch: Any) -> Any:
    model = Frozen(**{f.name: getattr(parts.model, f.name) for f in FIELDS})
    parts = dataclasses.replace(parts, model=model)
    function = micro_batches.gradients if parts.num_micro_batches > 1 else step._whole
    # Blocks start closed, with BatchNorm scales of 0.
    params = jax.tree.map(lambda p: np.where(p == 0, np.float32(0.1), p), state.params)
    run = jax.jit(functools.partial(function, parts))
    return jax.device_get(run(params, state.batch_stats, batch)[0])


FIELDS = dataclasses.fields(models.SimCLR)


def errors(gradient: Any, reference: Any) -> tuple[float, float]:
    """Relative error over all parameters, and the largest of one array."""
    pairs = list(
        zip(jax.tree.leaves(gradient), jax.tree.leaves(reference), strict=True)
    )
    off = [float(np.sum((a - b) ** 2.0)) for a, b in pairs]
    size = [float(np.sum(b**2.0)) for _, b in pairs]
    largest = max(o / s for o, s in zip(off, size, strict=True))
    return (sum(off) / sum(size)) ** 0.5, largest**0.5


def main() -> None:
    """Runs the benchmark and prints its table."""
    # No ReLU input of this batch is within rounding of 0, where gradients flip.
    generator = np.random.default_rng(1)
    batch = {
        "images": generator.integers(0, 256, (BATCH, 2, SIZE, SIZE, 3), np.uint8),
        "labels": generator.integers(0, CLASSES, BATCH).astype(np.int32),
    }
    mesh = parallel.create_mesh(jax.devices()[:1])
    programs, states, gradients = {}, {}, {}
    for size in MICRO_BATCHES:
        parts = make_parts(size)
        state = compiling.compile_init(parts, mesh, image_size=SIZE)(jax.random.key(0))
        states[size] = jax.device_get(state)
        gradients[size] = frozen_gradient(parts, states[size], batch)
        lowered = compiling.compile_step(parts, mesh).lower(state, batch)  # type: ignore
        programs[size] = lowered.compile()
    seconds: dict[int | None, list[float]] = {size: [] for size in MICRO_BATCHES}
    for _ in range(ROUNDS):
        for size, program in programs.items():
            state = jax.device_put(states[size])
            start = time.process_time()
            jax.block_until_ready(program(state, batch))
            seconds[size].append(time.process_time() - start)
    print("| micro-batch | temporaries, MiB | CPU seconds | error | of one array |")
    print("|---|---|---|---|---|")
    for size, program in programs.items():
        temporaries = program.memory_analysis().temp_size_in_bytes / 2**20
        whole, one = errors(gradients[size], gradients[None])
        print(
            f"| {size or f'none ({BATCH})'} | {temporaries:.0f} |"
            f" {statistics.median(seconds[size]):.1f} | {whole:.1e} | {one:.1e} |"
        )


if __name__ == "__main__":
    main()
