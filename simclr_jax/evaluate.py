r"""Evaluates the encoder of a run.

    python -m simclr_jax.evaluate --workdir=RUN --protocol=knn
    python -m simclr_jax.evaluate --workdir=RUN --protocol=knn,linear --baselines
    python -m simclr_jax.evaluate --workdir=RUN --protocol=layers --keep_features

On a dataset other than the run's (a folder, a TFDS dataset), and on the transfer suite:

    python -m simclr_jax.evaluate --workdir=RUN --protocol=linear \
        --set=data.dataset=folder:DIR --set=evaluation.test_split=test
    python -m simclr_jax.evaluate --workdir=RUN --protocol=linear \
        --set=data.dataset=cifar100 --set=data.data_dir=DIR \
        --set=evaluation.test_split=test
    python -m simclr_jax.evaluate --workdir=RUN --protocol=transfer --datasets=dtd,pets

Protocols (evaluation/protocols.py); each writes RUN/eval/<protocol>.json, on another
dataset than the run's RUN/eval/<dataset>/<protocol>.json:

    knn           weighted nearest neighbours, for several numbers of neighbours
    linear        logistic regression by L-BFGS; held-out training images select its
                  penalty
    linear_1pct   linear on 1 % of the labels of each class
    linear_10pct  linear on 10 %; on ImageNet both use the official subsets
    linear_sgd    the paper's protocol: SGD on random crops and flips
    finetune_1pct trains the whole network and a new classifier on 1 % of the labels;
                  resumes if interrupted (eval/finetune_1pct/)
    finetune_10pct, finetune  the same on 10 % and on all labels
    classifier    the run's classifier: fine-tuned, distilled, or the online probe
    layers        linear on h, on each layer of the head and on z
    transfer      linear on the paper's twelve datasets, as far as TFDS has prepared
                  them; also writes RUN/eval/transfer/<dataset>.json
"""

from absl import flags

from simclr_jax import cli

_WORKDIR = cli.define_workdir()
_PROTOCOL = flags.DEFINE_list(
    "protocol",
    None,
    "One or more of knn, linear, linear_1pct, linear_10pct, linear_sgd, layers, "
    "finetune_1pct, finetune_10pct, finetune, classifier, transfer; comma-separated.",
)
cli.define_processes()
_STEP = flags.DEFINE_integer(
    "step", None, "The checkpoint to measure; by default the newest.", lower_bound=0
)
_BASELINES = flags.DEFINE_bool(
    "baselines", False, "Also measure raw pixels and the untrained encoder."
)
_KEEP_FEATURES = flags.DEFINE_bool(
    "keep_features",
    False,
    "Keep the features h in RUN/eval/features, and use those that an earlier command "
    "kept of the same encoder and images, which are then not read again.",
)
_DATASETS = flags.DEFINE_list(
    "datasets",
    [],
    "For the protocol transfer: one or more of food101, cifar10, cifar100, birdsnap, "
    "sun397, cars, aircraft, voc2007, dtd, pets, caltech101, flowers; by default all.",
)
_SET = flags.DEFINE_multi_string(
    "set",
    [],
    "KEY=VALUE for a key of the run's config, such as evaluation.knn_k=20 or "
    "data.dataset=cifar100, or of the protocols that fine-tune (configs/finetune.py), "
    "such as schedule.train_epochs=100; may be repeated.",
)


def main() -> None:
    """Runs the command."""
    cli.start_processes(_WORKDIR.value)
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.configs import finetune
    from simclr_jax.evaluation import loop
    from simclr_jax.parallel import processes

    results = loop.evaluate(
        _WORKDIR.value,
        _PROTOCOL.value or [],
        step=_STEP.value,
        overrides=_SET.value,
        baselines=_BASELINES.value,
        keep_features=_KEEP_FEATURES.value,
        transfer_datasets=_DATASETS.value,
        adapt=finetune.adapt,
    )
    if processes.is_main():
        cli.say(loop.table(results))


if __name__ == "__main__":
    cli.run(main, required=("workdir", "protocol"))
