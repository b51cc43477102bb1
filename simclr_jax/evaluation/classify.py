"""Trainings of a classifier that end with what they have achieved."""

from simclr_jax.evaluation import protocols, tasks
from simclr_jax.parallel import processes
from simclr_jax.training import loop


def train(
    job: loop.TrainingJob, workdir: str, *, allow_config_change: bool, classify: bool
) -> None:
    """Runs a training, then classifies the test split and prints the figure.

    Args:
      job: of fine-tuning or distillation.
      workdir: the run directory.
      allow_config_change: as in `loop.run`.
      classify: do so where there are labels; a missing test split is then an error
        before training.

    Raises:
      DataError: there is no test split to classify.
      CheckpointError, TrainingDiverged, RunStopped: as `loop.run`.
    """
    classify = classify and job.source.num_classes is not None
    if classify:
        with processes.all_or_none():
            tasks.open_dataset(job.config)
    loop.run(job, workdir, allow_config_change=allow_config_change)
    if classify:
        results = protocols.evaluate(workdir, ["classifier"])
        if processes.is_main():
            print(protocols.table(results))
