"""Runs the package's commands as a user does, in a process of their own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

# A net and images small enough that a run takes seconds.
TINY = (
    "--config=configs/smoke.py",
    "--config.image_size=8",
    "--config.encoder.depth=10",
    "--config.encoder.width=0.0625",
    "--config.batch.batch_size=16",
    "--config.evaluation.batch_size=64",
    "--config.schedule.warmup_steps=2",
    "--config.log.every_steps=1",
)


def start(module: str, *arguments: str, optimized: bool = False) -> subprocess.Popen:
    """Starts `python -m simclr_jax.MODULE ARGUMENTS` in the checkout, on two devices.

    `optimized` compiles as users do; by default quickly.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if optimized else "1",
        **({"XLA_FLAGS": ""} if optimized else {}),
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"simclr_jax.{module}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(module: str, *arguments: str, optimized: bool = False) -> tuple[int, str, str]:
    """Runs a command to its end and returns (exit code, stdout, stderr)."""
    process = start(module, *arguments, optimized=optimized)
    out, err = process.communicate(timeout=1200)
    return process.returncode, out, err
