"""What comes after the training: evaluation and export."""

import dataclasses
import os
import subprocess
import sys

import numpy as np

from simclr_jax.config import rules
from simclr_jax.data.sources.base import Source
from simclr_jax.data.sources.subsets import Subset
from simclr_jax.errors import RunFailed
from simclr_jax.evaluation import datasets
from simclr_jax.evaluation.context import make_contexts
from simclr_jax.evaluation.protocols import PROTOCOLS
from simclr_jax.parallel import processes
from simclr_jax.training.loop import TrainingJob
from simclr_jax.weights import encoder

_BATCHES = 2
_EXPORT_SECS = 1800


def evaluate(job: TrainingJob, workdir: str) -> str:
    """Nearest neighbours of a few batches.

    Args:
      job: the training.
      workdir: a run of it.

    Returns:
      What was found; every process must call it.
    """
    config = job.config
    if job.source.num_classes is None:
        return "not tried: the images have no labels to evaluate on"
    rules.check_devices(config, job.mesh.size, "evaluation")
    pretrained = encoder.load(workdir)
    with processes.all_or_none():
        dataset = datasets.open_dataset(config)
        batches = _BATCHES * config.evaluation.batch_size
        most = max(batches, *rules.as_tuple(config.evaluation.knn_k))
        dataset = dataclasses.replace(
            dataset, train=_some(dataset.train, most), test=_some(dataset.test, most)
        )
        datasets.check_sizes(config, ["knn"], dataset.train)
    contexts = make_contexts(
        pretrained,
        dataset,
        pretrained.preprocessing,
        config,
        job.mesh,
        workdir,
        with_baselines=False,
    )
    value = PROTOCOLS["knn"](contexts["pretrained"]).value
    return (
        f"knn of {dataset.test.num_examples} test images among "
        f"{dataset.train.num_examples}: {100 * value:.1f} %"
    )


def export(workdir: str, output: str) -> str:
    """Runs the export command in a process of its own, on this host's CPU.

    Args:
      workdir: a run.
      output: the folder to write.

    Returns:
      What the command says of the features.

    Raises:
      RunFailed: it did not succeed.
    """
    command = [sys.executable, "-m", "simclr_jax.export", "--format=safetensors"]
    result = subprocess.run(
        [*command, f"--workdir={workdir}", f"--output={output}"],
        # The accelerators are this process's.
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=_EXPORT_SECS,
        check=False,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise RunFailed(
            f"simclr_jax.export --format=safetensors ended with exit code "
            f"{result.returncode}: {lines[-1].removeprefix('error: ')}"
        )
    return "safetensors; " + result.stdout.splitlines()[0]


def _some(source: Source, most: int) -> Source:
    """At most so many images, from all parts of a source."""
    count = min(most, source.num_examples)
    indices = np.linspace(0, source.num_examples - 1, count).astype(np.int64)
    return Subset(source, indices, name=f"{count} of {source.name}")
