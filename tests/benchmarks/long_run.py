"""Watches a run of many tiny steps: memory, descriptors, threads and rates.

python tests/benchmarks/long_run.py --steps=100000
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from simclr_jax.runs import metrics_writer  # noqa: E402

LOG_STEPS, SAVE_STEPS = 500, 5000
SETTINGS = (
    "--config=configs/smoke.py",
    "--config.image_size=8",
    "--config.encoder.depth=10",
    "--config.encoder.width=0.0625",
    "--config.encoder.compute_dtype=float32",
    "--config.batch.batch_size=4",
    "--config.evaluation.batch_size=4",
    f"--config.log.every_steps={LOG_STEPS}",
    f"--config.checkpoint.every_steps={SAVE_STEPS}",
)


def look(process: int) -> tuple[int, int, int]:
    """(MiB of memory, open descriptors, threads) of a process."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    memory = int(fields["VmRSS"].split()[0]) // 1024
    return memory, len(os.listdir(f"/proc/{process}/fd")), int(fields["Threads"])


def main() -> None:
    """Runs and prints a table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    moments = [0.02, 0.5, 0.98]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        command = [sys.executable, "-m", "simclr_jax.pretrain", *SETTINGS]
        command += [f"--config.schedule.train_steps={arguments.steps}"]
        log = (pathlib.Path(folder) / "log").open("w+")
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stderr=log,
        )
        path = workdir / metrics_writer.FILE_NAME
        while process.poll() is None:
            time.sleep(1)
            records = metrics_writer.read_metrics(path) if path.exists() else []
            step = records[-1]["step"] if records else 0
            if moments and step >= moments[0] * arguments.steps:
                moments.pop(0)
                rows.append((step, *look(process.pid)))
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read()[-3000:])
        records = metrics_writer.read_metrics(path)
    print("| step | memory, MiB | descriptors | threads |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    rates = {r["step"]: r["images_per_sec"] for r in records[1:]}
    # A checkpoint is written beside the steps that follow it.
    beside = [v for step, v in rates.items() if (step - LOG_STEPS) % SAVE_STEPS == 0]
    others = [v for step, v in rates.items() if (step - LOG_STEPS) % SAVE_STEPS]
    print("\n| images/s | median | least | most |\n|---|---|---|---|")
    for name, values in (("after a checkpoint", beside), ("otherwise", others)):
        figures = statistics.median(values), min(values), max(values)
        print(f"| {name} | " + " | ".join(f"{x:.0f}" for x in figures) + " |")


if __name__ == "__main__":
    main()
