"""The evaluation protocols.

Every figure is that of the final state: the last fit, or the classifier behind the last
step of SGD. No test figure is looked at on the way, and none is chosen among several.
"""

import dataclasses
from collections.abc import Sequence

import jax
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import rules
from simclr_jax.data import pipeline
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import (
    finetune_protocols,
    knn,
    linear,
    linear_sgd,
    metrics,
    tasks,
    transfer,
)
from simclr_jax.evaluation.finetune_protocols import Adapt
from simclr_jax.evaluation.overrides import split, with_overrides
from simclr_jax.evaluation.receipts import Evaluation, Protocol, Result, Results
from simclr_jax.evaluation.tasks import Dataset, Task
from simclr_jax.evaluation.transfer_datasets import DATASETS
from simclr_jax.parallel import processes
from simclr_jax.training import input_pipeline
from simclr_jax.weights import encoder
from simclr_jax.weights.encoder import PretrainedEncoder


def _knn(task: Task) -> Result:
    evaluation = task.config.evaluation
    found = knn.knn_accuracies(
        *task.train_features,
        *task.test_features,
        ks=evaluation.knn_k,
        temperature=evaluation.knn_temperature,
        mesh=task.mesh,
    )
    return Result(
        found[evaluation.knn_k[0]],
        {"k": evaluation.knn_k, "temperature": evaluation.knn_temperature},
        values={f"k={k}": accuracy for k, accuracy in found.items()},
    )


def _linear(task: Task) -> Result:
    evaluation = task.config.evaluation
    value, chosen = linear.linear_evaluation(
        *task.train_features,
        *task.test_features,
        l2_penalties=evaluation.l2_penalties,
        max_steps=evaluation.lbfgs_steps,
        metric=metrics.METRICS[task.dataset.metric],
        mesh=task.mesh,
        seed=task.config.seed,
    )
    train = task.dataset.train
    return Result(
        value,
        {
            "solver": "lbfgs",
            "max_steps": evaluation.lbfgs_steps,
            "train_images": f"{train.num_examples} of {train.name}",
            **chosen,
        },
        metric=task.dataset.metric,
    )


def _layers(task: Task) -> Result:
    """Linear evaluation of h and of what each layer of the head makes of it."""
    found = {
        name: _linear(task.of_layer(encode)) for name, encode in task.layers.items()
    }
    return Result(
        found["h"].value,
        {name: result.settings for name, result in found.items()},
        values={name: result.value for name, result in found.items()},
    )


def _linear_sgd(task: Task) -> Result:
    evaluation, config = task.config.evaluation, task.config
    train = task.dataset.train
    batch_size = evaluation.sgd_batch_size
    steps = max(1, round(evaluation.sgd_epochs * (train.num_examples // batch_size)))
    settings = {
        "epochs": evaluation.sgd_epochs,
        "batch_size": batch_size,
        "learning_rate": evaluation.sgd_learning_rate * batch_size / 256,
        "momentum": evaluation.sgd_momentum,
    }
    crops_and_flips = Composition(
        ("crop", "flip"),
        {"crop": dict(config.augment.crop), "flip": {"probability": 0.5}},
        image_size=task.preprocessing.image_size,
    )
    batches = pipeline.train_batches(
        train,
        crops_and_flips,
        seed=config.seed,
        batch_size=batch_size,
        num_views=1,
        stop_step=steps,
        host_index=jax.process_index(),
        num_hosts=jax.process_count(),
        compiled=input_pipeline.compile_host_views(config),
        buffers=input_pipeline.make_buffers(config, batch_size=batch_size, num_views=1),
    )
    classifier = linear_sgd.train_classifier(
        task.encode,
        batches,
        num_classes=train.num_classes or 0,
        num_steps=steps,
        learning_rate=settings["learning_rate"],
        momentum=settings["momentum"],
        mesh=task.mesh,
    )
    x, labels = task.test_features
    return Result(metrics.top1(linear.logits(classifier, x), labels), settings)


# Protocols by the name given to --protocol.
PROTOCOLS: dict[str, Protocol] = {
    "knn": _knn,
    "linear": _linear,
    "linear_1pct": _linear,
    "linear_10pct": _linear,
    "linear_sgd": _linear_sgd,
    "layers": _layers,
    "classifier": finetune_protocols.classifier,
}
# Those that are given the labels of a share of the training images only.
SHARES = {"linear_1pct": 0.01, "linear_10pct": 0.1}
# Measures other datasets than the run's.
_TRANSFER = "transfer"
_OWN = "the run's"
NAMES = (*PROTOCOLS, *finetune_protocols.SHARES, _TRANSFER)


def evaluate(
    workdir: str,
    protocols: Sequence[str],
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    baselines: bool = False,
    datasets: Sequence[str] = (),
    adapt: Adapt | None = None,
) -> dict[str, Results]:
    """Measures the encoder of a run and writes `eval/<protocol>.json`.

    Args:
      workdir: the run directory.
      protocols: of `NAMES`.
      step: the checkpoint; the newest when None.
      overrides: 'key=value' for keys of the run's config.
      baselines: measure raw pixels and the untrained encoder too.
      datasets: of the transfer suite; all when empty.
      adapt: makes the configs of the protocols that fine-tune.

    Returns:
      Results by protocol and representation.

    Raises:
      ConfigError, DataError: something cannot be evaluated.
      EncoderChanged: a protocol altered the encoder; nothing is written for it.
    """
    _check_names(protocols, datasets)
    overrides, of_training = split(overrides)
    by_name = PROTOCOLS | _fine_tuning(workdir, protocols, adapt, of_training)
    pretrained = encoder.load(workdir, step=step)
    config = with_overrides(pretrained.config, overrides)
    rules.validate(config)
    layer = config.evaluation.layer
    measured = {"pretrained": tasks.representation(pretrained, layer)}
    mesh = parallel.create_mesh()
    with processes.all_or_none():
        rules.check_devices(config, mesh.size, "evaluation")
        opened = _open(config, protocols, datasets)
    processes.require_equal("the datasets", ", ".join(opened))
    if baselines:
        measured = tasks.baselines(pretrained, layer) | measured
    preprocessing = _preprocessing(pretrained, config, overrides)
    evaluation = Evaluation(workdir, pretrained, measured, preprocessing, config, mesh)

    suite = {name: opened[name] for name in opened if name in DATASETS}
    found = evaluation.tasks(opened[_OWN]) if _OWN in opened else {}
    results: dict[str, Results] = {}
    for protocol in protocols:
        if protocol == _TRANSFER:
            results[protocol] = transfer.measure(evaluation, suite, _linear)
        else:
            given = _measurable(protocol, found)
            if protocol in SHARES:
                share = opened[protocol]
                given = {name: task.of(share) for name, task in given.items()}
            results[protocol] = evaluation.measure(protocol, by_name[protocol], given)
    return results


def _fine_tuning(
    workdir: str,
    protocols: Sequence[str],
    adapt: Adapt | None,
    overrides: Sequence[str],
) -> dict[str, Protocol]:
    asked = [name for name in protocols if name in finetune_protocols.SHARES]
    if overrides and not asked:
        raise ConfigError(
            f"--set={overrides[0]}: must come with one of the protocols that train, "
            f"{', '.join(finetune_protocols.SHARES)}"
        )
    if not asked:
        return {}
    assert adapt is not None
    return {
        name: finetune_protocols.make_protocol(name, workdir, adapt, overrides)
        for name in asked
    }


def _measurable(protocol: str, tasks: dict[str, Task]) -> dict[str, Task]:
    """Without the representations that a protocol does not apply to."""
    if protocol == "classifier":
        return {"pretrained": tasks["pretrained"]}
    if protocol in finetune_protocols.SHARES:
        return {name: task for name, task in tasks.items() if task.network}
    return tasks


def _check_names(protocols: Sequence[str], datasets: Sequence[str]) -> None:
    for protocol in protocols:
        if protocol not in NAMES:
            raise ConfigError(
                f"--protocol={protocol}: must be one of {', '.join(NAMES)}"
            )
    transfer.choose(datasets)
    if datasets and _TRANSFER not in protocols:
        raise ConfigError(
            f"--datasets={','.join(datasets)}: must come with --protocol={_TRANSFER}; "
            "the others take --set=data.dataset=..."
        )


def _open(
    config: config_dict.ConfigDict, protocols: Sequence[str], datasets: Sequence[str]
) -> dict[str, Dataset]:
    """All that protocols need: `_OWN`, shares by protocol, the suite by dataset."""
    opened: dict[str, Dataset] = {}
    if any(protocol != _TRANSFER for protocol in protocols):
        own = opened[_OWN] = tasks.open_dataset(config)
        tasks.check_sizes(config, protocols, own.train)
        for protocol in protocols:
            if protocol in SHARES:
                share = tasks.open_share(config, own, SHARES[protocol])
                opened[protocol] = dataclasses.replace(own, train=share)
    if _TRANSFER in protocols:
        opened |= transfer.open_prepared(config, transfer.choose(datasets))
    return opened


def _preprocessing(
    pretrained: PretrainedEncoder,
    config: config_dict.ConfigDict,
    overrides: Sequence[str],
) -> Preprocessing:
    """That of the encoder, unless an override says otherwise."""
    given = {override.partition("=")[0] for override in overrides}
    changes = {
        name: config.evaluation[name]
        for name in ("crop_proportion", "resize")
        if f"evaluation.{name}" in given
    }
    if "image_size" in given:
        changes["image_size"] = config.image_size
    return dataclasses.replace(pretrained.preprocessing, **changes)


def table(results: dict[str, Results]) -> str:
    """Figures in percent: a representation a row and a protocol a column.

    Protocols with several figures have a table of their own below it.
    """
    names = dict.fromkeys(name for found in results.values() for name in found)
    rows = {
        name: {
            protocol: found[name].value
            for protocol, found in results.items()
            if name in found
        }
        for name in names
    }
    parts = [_format("representation", rows)]
    for protocol, found in results.items():
        figures = {
            figure: {
                name: result.values[figure]
                for name, result in found.items()
                if figure in result.values
            }
            for figure in found["pretrained"].values
        }
        if len(figures) > 1:
            parts.append(_format(protocol, figures))
    return "\n\n".join(parts)


def _format(title: str, rows: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [title.ljust(16) + "".join(name.rjust(14) for name in columns)]
    lines += [
        name.ljust(16)
        + "".join(f"{100 * row[c]:>13.1f}%" if c in row else " " * 14 for c in columns)
        for name, row in rows.items()
    ]
    return "\n".join(lines)
