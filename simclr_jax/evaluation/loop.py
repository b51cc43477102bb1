"""Runs protocols on representations and writes their receipts."""

import dataclasses
import logging
import types
from collections.abc import Callable, Mapping, Sequence

from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import rules
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError, printable, printable_lines
from simclr_jax.evaluation import (
    datasets,
    features,
    finetune_protocols,
    receipts,
    room,
    transfer,
)
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
    keep_features: bool = False,
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
      keep_features: whether to keep features in `eval/features/`, and use kept ones.
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
        keep_features=keep_features,
    )

    _log_pixels(contexts)
    with processes.all_or_none():
        for context in contexts.values():
            room.check(context, protocols)
        finetune_protocols.check(
            contexts["pretrained"], protocols, adapt, training_overrides
        )

    results: dict[str, Results] = {}
    for group in _in_groups(protocols):
        if group == [_TRANSFER]:
            suite = {name: opened[name] for name in opened if name in DATASETS}
            results[_TRANSFER] = transfer.measure(
                contexts, suite, measure, PROTOCOLS["linear"]
            )
            continue
        chosen = {name: functions[name] for name in group}
        trains = {name: opened[name].train for name in group if name in SHARES}
        results |= measure(chosen, contexts, trains)
    return {protocol: results[protocol] for protocol in protocols}


def _in_groups(protocols: Sequence[str]) -> list[list[str]]:
    """Protocols in the order in which they run; features are held within a group.

    Those of shares come after those of all images, whose features they use. Training
    comes last, since it needs the memory.
    """
    trained = [p for p in protocols if p in finetune_protocols.SHARES]
    frozen = [p for p in protocols if p not in trained and p != _TRANSFER]
    frozen.sort(key=lambda protocol: protocol in SHARES)
    suite = [p for p in protocols if p == _TRANSFER]
    return [group for group in (frozen, suite, trained) if group]


def measure(
    protocols: dict[str, Callable[[Context], Result]],
    contexts: dict[str, Context],
    trains: Mapping[str, Source] = types.MappingProxyType({}),
) -> dict[str, Results]:
    """Runs protocols on every representation and writes `<name>.json` for each.

    One representation comes after the other, so that the features of one are held at a
    time.

    Args:
      protocols: by name.
      contexts: by representation; the pretrained encoder's is the last.
      trains: the training images of protocols that do not use those of the contexts.

    Returns:
      Results by protocol and representation.

    Raises:
      EncoderChanged: a protocol changed the encoder; its receipt is not written.
    """
    pretrained = contexts["pretrained"]
    checksum = receipts.encoder_checksum(pretrained)
    results: dict[str, Results] = {name: {} for name in protocols}
    for representation, context in contexts.items():
        for name, protocol in protocols.items():
            if not _is_applicable(name, context):
                continue
            _LOG.info("%s of %s ...", name, representation)
            on_images = context.with_train(trains.get(name, context.dataset.train))
            result = results[name][representation] = protocol(on_images)
            _log(f"{name} of {representation}", result)
            if context is pretrained:
                receipts.write(name, results[name], on_images, checksum)
            else:
                receipts.check_unchanged(name, pretrained, checksum)
        context.cache.clear()
    return results


def _log(what: str, result: Result) -> None:
    _LOG.info("%s: %.2f %%", what, 100 * result.value)
    classes = result.classes
    if classes is None:
        return
    name, share = classes.majority
    _LOG.info(
        "%s: accuracy %.2f %% (95 %% interval %.1f to %.1f), balanced %.2f %% (%.1f to "
        "%.1f) of %d images; always %r would have %.2f %%",
        *(what, 100 * classes.accuracy, *(100 * x for x in classes.interval)),
        100 * classes.balanced_accuracy,
        *(100 * x for x in classes.balanced_interval),
        *(classes.num_test, printable(name), 100 * share),
    )
    if missing := classes.without_images:
        _LOG.warning(
            "%s: %d of %d classes have no test images, such as %s: nothing is known of "
            "them",
            *(what, len(missing), len(classes.names)),
            ", ".join(map(printable, missing[:3])),
        )


def _is_applicable(protocol: str, context: Context) -> bool:
    """Whether a protocol can measure a representation."""
    if protocol == "classifier":
        return context.name == "pretrained"
    return protocol not in finetune_protocols.SHARES or context.network is not None


def _log_pixels(contexts: dict[str, Context]) -> None:
    size = contexts["pretrained"].preprocessing.image_size
    if "pixels" in contexts and size > features.MAX_PIXELS_SIDE:
        _LOG.info(
            "pixels are those of images shrunk from %d x %d to %d x %d",
            *(size, size),
            *(features.MAX_PIXELS_SIDE, features.MAX_PIXELS_SIDE),
        )


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
    allow_data_change: bool,
    classify: bool,
    profile_steps: str | None = None,
) -> None:
    """Trains, then classifies the test split and prints the figure.

    Args:
      job: a fine-tuning or distillation.
      workdir: the run directory.
      allow_config_change: as in `training.loop.run`.
      allow_data_change: as in `training.loop.run`.
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
        allow_data_change=allow_data_change,
        profile_steps=profile_steps,
    )
    if classify:
        results = evaluate(workdir, ["classifier"])
        if processes.is_main():
            print(printable_lines(table(results)))


def table(results: dict[str, Results]) -> str:
    """Figures in percent: rows are representations and columns are protocols.

    Where images have one class each, the first row is the share of the test images'
    most frequent class, and a table of balanced accuracies follows; then one for each
    protocol with several figures.
    """
    names = dict.fromkeys(name for by_name in results.values() for name in by_name)
    judged = {
        protocol: by_name["pretrained"].classes for protocol, by_name in results.items()
    }
    majority = {p: classes.majority[1] for p, classes in judged.items() if classes}
    rows = {"majority": majority} if majority else {}
    rows |= {
        name: {
            protocol: by_name[name].value
            for protocol, by_name in results.items()
            if name in by_name
        }
        for name in names
    }
    parts = [_format("representation", rows)]
    if majority:
        parts.append(_format("balanced", _balanced(results)))
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


def _balanced(results: dict[str, Results]) -> dict[str, dict[str, float]]:
    """Balanced accuracy by representation and protocol."""
    rows: dict[str, dict[str, float]] = {}
    for protocol, by_name in results.items():
        for name, result in by_name.items():
            if result.classes is not None:
                row = rows.setdefault(name, {})
                row[protocol] = result.classes.balanced_accuracy
    return rows


def _format(title: str, rows: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    widths = [max(14, len(name) + 2) for name in columns]
    lines = [
        [title, *columns],
        *(
            [name, *(f"{100 * row[c]:.1f}%" if c in row else "" for c in columns)]
            for name, row in rows.items()
        ),
    ]
    return "\n".join(
        first.ljust(16)
        + "".join(cell.rjust(n) for cell, n in zip(cells, widths, strict=True))
        for first, *cells in lines
    )
