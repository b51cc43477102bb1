"""Whole training runs: killed and resumed, in both dtypes, and CIFAR-10."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np

from accelerator_parts.record import Record, Settings

ROOT = pathlib.Path(__file__).parents[3]
TINY = (
    "--config.image_size=8",
    "--config.encoder.depth=10",
    "--config.encoder.width=0.0625",
    "--config.batch.batch_size=16",
    "--config.augment.operations=('crop','flip')",
    "--config.evaluation.knn_k=(5,)",
    "--config.evaluation.lbfgs_steps=5",
    "--config.evaluation.l2_penalties=(1e-3,)",
)
# Metrics that are times.
_TIMES = ("images_per_sec", "input_wait_share", "bottleneck")
EPOCHS, EPOCHS_BETWEEN_KNN = 200, 20


def _command(
    config: str, settings: Settings, workdir: pathlib.Path, *more: str
) -> list[str]:
    return [
        *(sys.executable, "-m", "simclr_jax.pretrain", f"--config=configs/{config}"),
        f"--workdir={workdir}",
        f"--config.data.dataset={settings.data()}",
        "--config.augment.placement=accelerator",
        "--config.log.writers=()",
        *(TINY if settings.toy else ()),
        *more,
    ]


def _metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    # The last line may be half written.
    return [json.loads(line) for line in lines if line.endswith("}")]


def _pretrain(command: list[str], settings: Settings) -> None:
    subprocess.run(
        command, cwd=ROOT, check=True, timeout=settings.secs_left, env=os.environ
    )


def resume(record: Record, settings: Settings) -> None:
    """A run killed by SIGKILL and resumed, against one that was left alone."""
    total, every, log = (60, 20, 2) if settings.toy else (300, 100, 20)
    # The price is known before the proof: two runs that differ in the key alone.
    workdirs = {
        name: settings.workdir / "resume" / name
        for name in ("fast", "deterministic", "killed")
    }
    commands = {
        name: _command(
            "cifar10.py:200epochs",
            settings,
            workdir,
            f"--config.schedule.train_steps={total}",
            f"--config.checkpoint.every_steps={every}",
            f"--config.log.every_steps={log}",
            f"--config.parallel.deterministic={name != 'fast'}",
        )
        for name, workdir in workdirs.items()
    }
    for name in ("fast", "deterministic"):
        _pretrain(commands[name], settings)
    killed = workdirs["killed"]
    shutil.rmtree(killed, ignore_errors=True)
    process = subprocess.Popen(commands["killed"], cwd=ROOT)
    while process.poll() is None and settings.secs_left > 0 and not _saved(killed):
        time.sleep(0.02)
    process.kill()
    process.wait()
    lines = _metrics(killed)
    at, saved = (lines[-1]["step"] if lines else 0), max(_saved(killed), default=0)
    if not 0 < saved < total:
        raise RuntimeError(f"killed at a bad moment: after step {at}, {saved} saved")
    _pretrain(commands["killed"], settings)

    rates = {
        name: _metrics(workdirs[name])[-1]["images_per_sec"]
        for name in ("fast", "deterministic")
    }
    # A run logs its first step too, so the resumed one has a line more.
    alone = _untimed(workdirs["deterministic"])
    record["bit for bit"] = {
        "killed_after_step": at,
        "resumed_from_step": saved,
        "steps": total,
        "metrics_equal": alone.items() <= _untimed(killed).items(),
        "weights_equal": _same_weights(killed, workdirs["deterministic"]),
        "without_the_key_equal": _same_weights(
            workdirs["fast"], workdirs["deterministic"]
        ),
    }
    record["price"] = {
        "images_per_sec": round(rates["fast"], 1),
        "deterministic_images_per_sec": round(rates["deterministic"], 1),
    }
    shutil.rmtree(settings.workdir / "resume")


def _saved(workdir: pathlib.Path) -> list[int]:
    """The steps of complete checkpoints."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _untimed(workdir: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Metrics by step, without times."""
    return {
        line["step"]: {key: value for key, value in line.items() if key not in _TIMES}
        for line in _metrics(workdir)
    }


def _same_weights(first: pathlib.Path, second: pathlib.Path) -> bool:
    import jax

    import simclr_jax

    trees = [simclr_jax.load(str(path)).variables for path in (first, second)]
    pairs = zip(*map(jax.tree.leaves, trees), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def precision(record: Record, settings: Settings) -> None:
    """The loss over 200 steps, computed in bfloat16 and in float32."""
    steps = 6 if settings.toy else 200
    curves = {}
    for dtype in ("float32", "bfloat16"):
        workdir = settings.workdir / "precision" / dtype
        command = _command(
            "cifar10.py:200epochs",
            settings,
            workdir,
            f"--config.schedule.train_steps={steps}",
            "--config.log.every_steps=1",
            f"--config.encoder.compute_dtype={dtype}",
        )
        _pretrain(command, settings)
        lines = _metrics(workdir)
        curves[dtype] = np.array([line["loss"] for line in lines])
    difference = np.abs(curves["bfloat16"] - curves["float32"])
    record["loss"] = {
        "steps": steps,
        "first": round(float(curves["float32"][0]), 4),
        "last_float32": round(float(curves["float32"][-1]), 4),
        "last_bfloat16": round(float(curves["bfloat16"][-1]), 4),
        "mean_difference": round(float(difference.mean()), 4),
        "largest_difference": round(float(difference.max()), 4),
    }
    shutil.rmtree(settings.workdir / "precision")


def cifar10(record: Record, settings: Settings) -> None:
    """ResNet-18 for as many of 200 epochs as time allows; later calls resume it."""
    if settings.cifar is None and not settings.toy:
        raise ValueError("needs --cifar=FILE, which cifar_npz.py writes")
    workdir = settings.workdir / "cifar10"
    per_epoch = 160 // 16 if settings.toy else 50_000 // 512
    epochs, between = (4, 2) if settings.toy else (EPOCHS, EPOCHS_BETWEEN_KNN)
    command = _command(
        "cifar10.py:200epochs",
        settings,
        workdir,
        f"--config.schedule.train_steps={epochs * per_epoch}",
        f"--config.checkpoint.every_steps={between * per_epoch}",
        f"--config.checkpoint.keep_every_steps={between * per_epoch}",
        f"--config.log.every_steps={per_epoch}",
        "--config.encoder.compute_dtype=bfloat16",
    )
    process = subprocess.Popen(command, cwd=ROOT)
    # Time for the evaluations and a last checkpoint.
    reserve = 5 if settings.toy else 90
    while process.poll() is None:
        if settings.secs_left < reserve:
            process.send_signal(signal.SIGTERM)  # saves and ends
            break
        time.sleep(0.2)
    if process.wait() not in (0, 143):
        raise RuntimeError(f"training ended with exit code {process.returncode}")
    lines = _metrics(workdir)
    record["training"] = {
        "epochs": round(lines[-1]["step"] / per_epoch, 1),
        "of": epochs,
        "images_per_sec": round(
            float(np.median([line["images_per_sec"] for line in lines])), 1
        ),
        "loss": round(lines[-1]["loss"], 4),
        "jpeg_quality": _quality(settings),
    }
    saved = _saved(workdir)
    for step in saved:
        row = f"kNN, epoch {step / per_epoch:g}"
        if row not in record:
            record[row] = {"top1": _evaluate(workdir, "knn", step)}
    done = saved[-1] == epochs * per_epoch
    record["linear"] = {
        "top1": _evaluate(workdir, "linear", saved[-1]),
        "epoch": round(saved[-1] / per_epoch, 1),
    }
    if not done:
        raise TimeoutError("the time was up; the next call resumes")


def _quality(settings: Settings) -> int | None:
    import cifar_npz

    return cifar_npz.quality_of(settings.cifar) if settings.cifar else None


def _evaluate(workdir: pathlib.Path, protocol: str, step: int) -> float:
    from simclr_jax.evaluation import loop

    results = loop.evaluate(str(workdir), [protocol], step=step)
    return round(100 * results[protocol]["pretrained"].value, 2)
