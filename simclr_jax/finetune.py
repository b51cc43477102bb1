r"""Fine-tunes a pretrained encoder on labels.

    python -m simclr_jax.finetune --config=finetune:cifar10,0.1 \
        --init_from=RUN --workdir=RUN2

Starts from a run, or from any folder that `simclr_jax.load` opens, with a new
classifier of zeros; `--init_from=random` trains from random weights, as a baseline.
The same command resumes an interrupted run. At the end the final weights classify the
test split (RUN2/eval/classifier.json). RUN2 is a run like any other: `evaluate`,
`export` and `simclr_jax.load` open it.
"""

from absl import flags

from simclr_jax import cli

_CONFIG = cli.define_config()
_INIT_FROM: flags.FlagHolder = flags.DEFINE_string(
    "init_from", None, "The run, or exported folder, to start from; or 'random'."
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
    from simclr_jax.training import finetuning
    from simclr_jax.weights import encoder, load

    config = directory.as_recorded(_CONFIG.value, _WORKDIR.value)
    path = _INIT_FROM.value
    finetuning.check_group(config, "finetune")
    random = path == "random"
    weights = encoder.initialize(config) if random else load.load_to_train(path)
    with config.unlocked():
        config.finetune.init_from = path
        config.finetune.init_checksum = encoder.checksum(weights.variables)
    job = finetuning.make_job(
        config, weights, fit_batch="batch.batch_size" not in cli.overridden_keys()
    )
    loop.train_and_classify(
        job,
        _WORKDIR.value,
        allow_config_change=_ALLOW_CONFIG_CHANGE.value,
        allow_data_change=_ALLOW_DATA_CHANGE.value,
        profile_steps=_PROFILE_STEPS.value,
        classify=_EVALUATE.value,
    )


if __name__ == "__main__":
    cli.run(main, required=("config", "init_from", "workdir"))
