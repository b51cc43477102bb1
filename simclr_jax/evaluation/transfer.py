"""Linear evaluation on the transfer datasets."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import config_dict

from simclr_jax.data.sources import registry
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError, NotPrepared
from simclr_jax.evaluation import receipts
from simclr_jax.evaluation.context import Context
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.receipts import Result, Results
from simclr_jax.evaluation.transfer_datasets import DATASETS, TransferDataset

_LOG = logging.getLogger(__name__)


def choose(names: Sequence[str]) -> list[str]:
    """The names of the datasets to use; all when `names` is empty.

    Raises:
      ConfigError: a name is not in `DATASETS`.
    """
    for name in names:
        if name not in DATASETS:
            raise ConfigError(
                f"--datasets={name}: must be one or more of {', '.join(DATASETS)}"
            )
    return list(dict.fromkeys(names)) or list(DATASETS)


def open_prepared(
    config: config_dict.ConfigDict, names: Sequence[str]
) -> dict[str, Dataset]:
    """Opens the datasets that are prepared; a log line names the others.

    Raises:
      NotPrepared: none is prepared.
      DataError: one cannot be read.
    """
    data_dir = config.data.data_dir
    prepared, missing = {}, []
    for name in names:
        entry = DATASETS[name]
        try:
            train, test = (
                _open(entry, split, data_dir)
                for split in (entry.train_split, entry.test_split)
            )
        except NotPrepared:
            missing.append(name)
            continue
        splits = entry.train_split, entry.test_split
        prepared[name] = Dataset(entry.tfds_name, *splits, train, test, entry.metric)
    if missing and not prepared:
        raise NotPrepared(
            "--protocol=transfer: no dataset is prepared; "
            f"{_how_to_prepare(missing, data_dir)}"
        )
    if missing:
        _LOG.info("transfer leaves out %s", _how_to_prepare(missing, data_dir))
    return prepared


def _open(entry: TransferDataset, split: str, data_dir: str | None) -> Source:
    return registry.open_tfds(
        entry.tfds_name,
        data_dir=data_dir,
        split=split,
        label_key=entry.label_key,
        certain_key=entry.certain_key,
    )


def _how_to_prepare(missing: Sequence[str], data_dir: str | None) -> str:
    """How to prepare the datasets, in one line."""
    where = f" --data_dir={data_dir}" if data_dir else ""
    offered = [name for name in missing if DATASETS[name].offered]
    parts = []
    if offered:
        builds = " ".join(DATASETS[name].tfds_name for name in offered)
        build = f"tfds build {builds}{where}"
        parts.append(f"{', '.join(offered)} (prepare with `{build}`)")
    parts += [
        f"{name} (not in TFDS: prepare it in its format, as {DATASETS[name].tfds_name} "
        "with the splits train, validation and test)"
        for name in missing
        if not DATASETS[name].offered
    ]
    return ", ".join(parts)


def measure(
    contexts: dict[str, Context],
    suite: dict[str, Dataset],
    run: Callable[..., dict[str, Results]],
    protocol: Callable[[Context], Result],
) -> Results:
    """Measures every dataset, with one receipt each, then writes a summary.

    Args:
      contexts: by representation.
      suite: datasets by name.
      run: `loop.measure`.
      protocol: runs on every dataset.

    Returns:
      By representation, the mean over the datasets of each one's metric.

    Raises:
      EncoderChanged: the protocol changed the encoder.
    """
    by_dataset = {}
    for name, dataset in suite.items():
        on_dataset = {k: c.with_dataset(dataset) for k, c in contexts.items()}
        receipt = f"transfer/{name}"
        by_dataset[name] = run({receipt: protocol}, on_dataset)[receipt]
    before = receipts.encoder_checksum(contexts["pretrained"])
    summary = {}
    for representation in contexts:
        results = {name: by_dataset[name][representation] for name in suite}
        values = {name: result.value for name, result in results.items()}
        summary[representation] = Result(
            float(np.mean([*values.values()])),
            {
                "metrics": {name: result.metric for name, result in results.items()},
                "not_prepared": [name for name in DATASETS if name not in results],
            },
            metric="mean over the datasets",
            values=values,
        )
    pretrained = contexts["pretrained"]
    receipts.write("transfer", summary, pretrained, before, is_summary=True)
    return summary
