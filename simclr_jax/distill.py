r"""Trains a student on the labels of a fine-tuned teacher (SimCLRv2).

    python -m simclr_jax.distill --config=distill:cifar10 \
        --teacher=RUN2 --workdir=RUN3

The images need no labels; if they have labels, `--config.distill.labelled_weight`
mixes them in, and the test split is classified at the end
(RUN3/eval/classifier.json). The student is the config's encoder with random weights, or
starts from `--init_from`. The same command resumes an interrupted run.
"""

from absl import flags

from simclr_jax import cli

_CONFIG = cli.define_config()
_TEACHER: flags.FlagHolder = flags.DEFINE_string(
    "teacher", None, "The fine-tuned run that labels the images."
)
_INIT_FROM: flags.FlagHolder = flags.DEFINE_string(
    "init_from", None, "The run, or exported folder, that the student starts from."
)
_WORKDIR = cli.define_workdir()
cli.define_processes()
_ALLOW_CONFIG_CHANGE = cli.define_allow_config_change()
_ALLOW_DATA_CHANGE = cli.define_allow_data_change()
_PROFILE_STEPS = cli.define_profile_steps()
_EVALUATE = cli.define_evaluate()


def main() -> None:
    """Runs the command."""
    cli.start_processes(_WORKDIR.value)
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.evaluation import loop
    from simclr_jax.runs import directory
    from simclr_jax.training import distillation, finetuning
    from simclr_jax.weights import encoder, load

    config = directory.as_recorded(_CONFIG.value, _WORKDIR.value)
    finetuning.check_group(config, "distill")
    teacher = encoder.load(_TEACHER.value)
    weights = None
    if _INIT_FROM.value is not None:
        weights = load.load_to_train(_INIT_FROM.value)
    with config.unlocked():
        config.distill.teacher = _TEACHER.value
        config.distill.teacher_checksum = encoder.checksum(
            {"encoder": teacher.variables, "heads": teacher.heads}
        )
        if weights is not None:
            config.distill.init_from = _INIT_FROM.value
            config.distill.init_checksum = encoder.checksum(weights.variables)
    job = distillation.make_job(config, teacher, weights)
    loop.train_and_classify(
        job,
        _WORKDIR.value,
        allow_config_change=_ALLOW_CONFIG_CHANGE.value,
        allow_data_change=_ALLOW_DATA_CHANGE.value,
        profile_steps=_PROFILE_STEPS.value,
        classify=_EVALUATE.value,
    )


if __name__ == "__main__":
    cli.run(main, required=("config", "teacher", "workdir"))
