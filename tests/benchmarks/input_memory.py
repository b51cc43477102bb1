"""Holds the input pipeline's memory against its budget over many steps.

    python tests/benchmarks/input_memory.py --config=configs/smoke.py
    python tests/benchmarks/input_memory.py --config=configs/folder.py:FOLDER \
      --config.data.split=all --config.batch.batch_size=64 --steps=300

The first is small images in memory, the second JPEG files. Batches are made as training
makes them and thrown away; no net is trained. Printed is the resident memory of the
process: of the program alone, which is what a first batch leaves behind (the dataset
open, TensorFlow and compiled code); after a warm-up of --warm_up_steps; at the end; and
the highest since the first batch. Ends with exit code 1 if the highest is further above
the program than `Buffers.memory_bytes`, which `config.data.memory_mb` limits. Linux
only.
"""

import ctypes
import gc
import os
import pathlib
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from absl import flags

from simclr_jax import cli

_CONFIG = cli.define_config()
_STEPS = flags.DEFINE_integer("steps", 10_000, "Batches that are made.", lower_bound=1)
_WARM_UP_STEPS = flags.DEFINE_integer("warm_up_steps", 50, "Of them, the first ones.")
_MIB = 2**20
_STATUS = pathlib.Path("/proc/self/status")


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process in memory; of VmHWM, the most there ever were."""
    lines = _STATUS.read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Makes VmHWM the most from now on; see proc(5)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Returns memory that was freed to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    """Runs the command line."""
    from simclr_jax.training import input_pipeline

    config = _CONFIG.value
    steps = _STEPS.value
    warm_up_steps = min(_WARM_UP_STEPS.value, steps)
    source = input_pipeline.open_source(config, config.data.split)
    source = input_pipeline.hold_in_memory(config, source)
    buffers = input_pipeline.make_buffers(config, batch_size=config.batch.batch_size)
    config.schedule.train_steps = 1
    for _ in input_pipeline.local_batches(config, source, start_step=0):
        pass
    give_back()
    forget_peak()
    config.schedule.train_steps = steps
    program, warm, start = resident(), 0, time.perf_counter()
    batches = input_pipeline.local_batches(config, source, start_step=0)
    for step, batch in enumerate(batches, start=1):
        if step == warm_up_steps:
            warm = resident()
        if step % max(1, steps // 10) == 0:
            elapsed = time.perf_counter() - start
            print(
                f"step {step:,}: {resident() / _MIB:,.0f} MiB, "
                f"{step * len(batch['labels']) / elapsed:.0f} images/s",
                flush=True,
            )
    end, peak = resident(), resident("VmHWM")
    print(
        f"{source.name}: {steps:,} steps of {config.batch.batch_size} images at "
        f"{config.image_size} pixels, {buffers.threads} threads, "
        f"{buffers.parallel_reads} parallel reads"
    )
    for name, size in (
        ("program", program),
        (f"after {warm_up_steps} steps", warm),
        ("at the end", end),
        ("highest", peak),
    ):
        print(f"{name:>16}: {size / _MIB:7,.0f} MiB, {(size - program) / _MIB:+,.0f}")
    budget = buffers.memory_bytes
    print(f"{'budget':>16}: {budget / _MIB:7,.0f} MiB")
    print(f"{'growth':>16}: {(end - warm) / _MIB:+7,.0f} MiB after the warm-up")
    if peak - program > budget:
        raise SystemExit("error: the pipeline took more memory than its budget")


if __name__ == "__main__":
    cli.run(main, required=("config",))
