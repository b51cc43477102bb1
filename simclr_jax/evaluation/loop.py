"""Runs protocols on representations and writes their receipts."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import rules
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.errors import ConfigError
from simclr_jax.evaluation import datasets, finetune_protocols, receipts, transfer
from simclr_jax.evaluation.context import Context, make_contexts
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.finetune_protocols import Adapt
from simclr_jax.evaluation.overrides import (
    separate_training_overrides,
    with_overrides,
)
from simclr_jax.evaluation.protocols import PROTOCOLS, SHARES
from simclr_jax.evaluation.receipts import Result, Results
from simclr_jax.evaluation.transfer_datasets import DATASETS
from simclr_jax.parallel import processes
from simclr_jax.training import loop as training_loop
from simclr_jax.weights import encoder
from simclr_jax.weights.encoder import PretrainedEncoder

_LOG = logging.getLogger(__name__)
_TRANSFER = "transfer"
# The key of the run's dataset among the opened datasets.
_RUN = "the run's"
NAMES = (*PROTOCOLS, *finetune_protocols.SHARES, _TRANSFER)


def evaluate(
    workdir: str,
    protocols: Sequence[str],
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    baselines: bool = False,
    transfer_datasets: Sequence[str] = (),
    adapt: Adapt | None = None,
) -> dict[str, Results]:
    """Measures the encoder of a run and writes `eval/<protocol>.json`.

    Args:
      workdir: the run directory.
      protocols: names in `NAMES`.
      step: the checkpoint's step; the newest when None.
      overrides: 'key=value' for keys of the run's config or of fine-tuning.
      baselines: whether to measure raw pixels and the untrained encoder too.
      transfer_datasets: names in the transfer suite; all when empty.
      adapt: builds the configs of the protocols that fine-tune.

    Returns:
      Results by protocol and representation.

    Raises:
      ConfigError, DataError: something cannot be evaluated.
      EncoderChanged: a protocol changed the encoder; it writes no receipt.
    """
    _check_names(protocols, transfer_datasets)
    overrides, training_overrides = separate_training_overrides(overrides)
    functions = PROTOCOLS | finetune_protocols.make_protocols(
        protocols, adapt, training_overrides
    )
    pretrained = encoder.load(workdir, step=step)
    config = with_overrides(pretrained.config, overrides)
    rules.validate(config)
    mesh = parallel.create_mesh()
    with processes.all_or_none():
        rules.check_devices(config, mesh.size, "evaluation")
        opened = _open(config, protocols, transfer_datasets)
    processes.require_equal("the datasets", ", ".join(opened))
    contexts = make_contexts(
        pretrained,
        next(iter(opened.values())),
        _preprocessing(pretrained, config, overrides),
        config,
        mesh,
        workdir,
        with_baselines=baselines,
    )

    results: dict[str, Results] = {}
    for protocol in protocols:
        if protocol == _TRANSFER:
            suite = {name: opened[name] for name in opened if name in DATASETS}
            results[protocol] = transfer.measure(
                contexts, suite, measure, PROTOCOLS["linear"]
            )
            continue
        applicable = _applicable(protocol, contexts)
        if protocol in SHARES:
            train = opened[protocol].train
            applicable = {k: c.with_train(train) for k, c in applicable.items()}
        results[protocol] = measure(protocol, functions[protocol], applicable)
    return results


def measure(
    name: str, protocol: Callable[[Context], Result], contexts: dict[str, Context]
) -> Results:
    """Runs a protocol on every representation and writes `eval/<name>.json`.

    Raises:
      EncoderChanged: the protocol changed the encoder; nothing is written.
    """
    before = receipts.encoder_checksum(contexts["pretrained"])
    results = {}
    for representation, context in contexts.items():
        _LOG.info("%s of %s ...", name, representation)
        results[representation] = protocol(context)
        value = 100 * results[representation].value
        _LOG.info("%s of %s: %.2f %%", name, representation, value)
    receipts.write(name, results, contexts["pretrained"], before)
    return results


def _applicable(protocol: str, contexts: dict[str, Context]) -> dict[str, Context]:
    """The representations that a protocol can measure."""
    if protocol == "classifier":
        return {"pretrained": contexts["pretrained"]}
    if protocol in finetune_protocols.SHARES:
        return {name: context for name, context in contexts.items() if context.network}
    return contexts


def _check_names(protocols: Sequence[str], transfer_datasets: Sequence[str]) -> None:
    if not protocols:
        raise ConfigError(f"--protocol: must be one or more of {', '.join(NAMES)}")
    for protocol in protocols:
        if protocol not in NAMES:
            raise ConfigError(
                f"--protocol={protocol}: must be one of {', '.join(NAMES)}"
            )
    transfer.choose(transfer_datasets)
    if transfer_datasets and _TRANSFER not in protocols:
        raise ConfigError(
            f"--datasets={','.join(transfer_datasets)}: must come with "
            f"--protocol={_TRANSFER}; the others take --set=data.dataset=..."
        )


def _open(
    config: config_dict.ConfigDict,
    protocols: Sequence[str],
    transfer_datasets: Sequence[str],
) -> dict[str, Dataset]:
    """All datasets: `_RUN`, its shares by protocol, the transfer datasets by name."""
    opened: dict[str, Dataset] = {}
    if any(protocol != _TRANSFER for protocol in protocols):
        dataset = opened[_RUN] = datasets.open_dataset(config)
        datasets.check_sizes(config, protocols, dataset.train)
        for protocol in protocols:
            if protocol in SHARES:
                share = datasets.open_share(config, dataset, SHARES[protocol])
                opened[protocol] = dataclasses.replace(dataset, train=share)
    if _TRANSFER in protocols:
        opened |= transfer.open_prepared(config, transfer.choose(transfer_datasets))
    return opened


def _preprocessing(
    pretrained: PretrainedEncoder,
    config: config_dict.ConfigDict,
    overrides: Sequence[str],
) -> Preprocessing:
    """The encoder's preprocessing, with the overrides."""
    keys = {override.partition("=")[0] for override in overrides}
    changes = {
        name: config.evaluation[name]
        for name in ("crop_proportion", "resize")
        if f"evaluation.{name}" in keys
    }
    if "image_size" in keys:
        changes["image_size"] = config.image_size
    return dataclasses.replace(pretrained.preprocessing, **changes)


def train_and_classify(
    job: training_loop.TrainingJob,
    workdir: str,
    *,
    allow_config_change: bool,
    classify: bool,
    profile_steps: str | None = None,
) -> None:
    """Trains, then classifies the test split and prints the figure.

    Args:
      job: a fine-tuning or distillation.
      workdir: the run directory.
      allow_config_change: as in `training.loop.run`.
      classify: whether to classify, if the images have labels; a missing test split
        is then an error before training.
      profile_steps: as in `training.loop.run`.

    Raises:
      DataError: the test split is missing.
      CheckpointError, TrainingDiverged, RunStopped: as `training.loop.run`.
    """
    classify = classify and job.source.num_classes is not None
    if classify:
        with processes.all_or_none():
            datasets.open_dataset(job.config)
    training_loop.run(
        job,
        workdir,
        allow_config_change=allow_config_change,
        profile_steps=profile_steps,
    )
    if classify:
        results = evaluate(workdir, ["classifier"])
        if processes.is_main():
            print(table(results))


def table(results: dict[str, Results]) -> str:
    """Figures in percent: rows are representations and columns are protocols.

    Another table follows for each protocol with several figures.
    """
    names = dict.fromkeys(name for by_name in results.values() for name in by_name)
    rows = {
        name: {
            protocol: by_name[name].value
            for protocol, by_name in results.items()
            if name in by_name
        }
        for name in names
    }
    parts = [_format("representation", rows)]
    for protocol, by_name in results.items():
        figures = {
            figure: {
                name: result.values[figure]
                for name, result in by_name.items()
                if figure in result.values
            }
            for figure in by_name["pretrained"].values
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
