"""Measures the frozen encoder of a run.

    python -m simclr_jax.evaluate --workdir=RUN --protocol=knn
    python -m simclr_jax.evaluate --workdir=RUN --protocol=knn,linear --baselines

Protocols: knn (weighted nearest neighbours), linear (logistic regression by L-BFGS,
penalty chosen on held-out training images), linear_sgd (the paper's: SGD on random
crops and flips). Each writes RUN/eval/<protocol>.json.
"""

from absl import flags

from simclr_jax import command

_WORKDIR = command.define_workdir()
_PROTOCOL = flags.DEFINE_list(
    "protocol", None, "One or more of knn, linear, linear_sgd; comma-separated."
)
command.define_processes()
_STEP = flags.DEFINE_integer(
    "step", None, "The checkpoint to measure; by default the newest.", lower_bound=0
)
_BASELINES = flags.DEFINE_bool(
    "baselines", False, "Measure raw pixels and the untrained encoder beside it."
)
_SET = flags.DEFINE_multi_string(
    "set",
    [],
    "KEY=VALUE for a key of the run's config, such as evaluation.knn_k=20 or "
    "data.dataset=cifar100; may be repeated.",
)


def main() -> None:
    """Runs the command."""
    command.start_processes(_WORKDIR.value)
    # Imported here, so that --help and bad flags do not wait for TensorFlow.
    from simclr_jax.evaluation import protocols
    from simclr_jax.parallel import processes

    values = protocols.evaluate(
        _WORKDIR.value,
        _PROTOCOL.value or [],
        step=_STEP.value,
        overrides=_SET.value,
        baselines=_BASELINES.value,
    )
    if processes.is_main():
        print(protocols.table(values))


if __name__ == "__main__":
    command.run(main, required=("workdir", "protocol"))
