"""Linear evaluation on other datasets than the run's."""

import logging
from collections.abc import Sequence

import numpy as np
from ml_collections import config_dict

from simclr_jax.data.sources import registry
from simclr_jax.data.sources.base import Source
from simclr_jax.errors import ConfigError, NotPrepared
from simclr_jax.evaluation.receipts import Evaluation, Protocol, Result, Results
from simclr_jax.evaluation.tasks import Dataset
from simclr_jax.evaluation.transfer_datasets import DATASETS, TransferDataset

_LOG = logging.getLogger(__name__)


def choose(names: Sequence[str]) -> list[str]:
    """Datasets by name; all when none is named.

    Raises:
      ConfigError: there is no such dataset.
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
    """Those of the datasets that are prepared here; a line names the others.

    Raises:
      NotPrepared: none is.
      DataError: one cannot be read.
    """
    data_dir = config.data.data_dir
    found, missing = {}, []
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
        found[name] = Dataset(entry.tfds_name, *splits, train, test, entry.metric)
    if missing and not found:
        raise NotPrepared(
            f"--protocol=transfer: no dataset is prepared; {_how(missing, data_dir)}"
        )
    if missing:
        _LOG.info("transfer leaves out %s", _how(missing, data_dir))
    return found


def _open(entry: TransferDataset, split: str, data_dir: str | None) -> Source:
    return registry.open_tfds(
        entry.tfds_name,
        data_dir=data_dir,
        split=split,
        label_key=entry.label_key,
        certain_key=entry.certain_key,
    )


def _how(missing: Sequence[str], data_dir: str | None) -> str:
    """What prepares the datasets, in one line."""
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
    evaluation: Evaluation, suite: dict[str, Dataset], protocol: Protocol
) -> Results:
    """Measures each dataset with a receipt of its own, then writes a summary.

    Args:
      evaluation: the encoder.
      suite: datasets by name.
      protocol: what to do on each.

    Returns:
      By representation: the mean over the datasets, each by its own metric.

    Raises:
      EncoderChanged: as `Evaluation.measure`.
    """
    by_dataset = {
        name: evaluation.measure(f"transfer/{name}", protocol, evaluation.tasks(data))
        for name, data in suite.items()
    }
    results = {}
    for representation in evaluation.representations:
        found = {name: of[representation] for name, of in by_dataset.items()}
        values = {name: result.value for name, result in found.items()}
        results[representation] = Result(
            float(np.mean([*values.values()])),
            {
                "metrics": {name: result.metric for name, result in found.items()},
                "not_prepared": [name for name in DATASETS if name not in found],
            },
            metric="mean over the datasets",
            values=values,
        )
    evaluation.summarise("transfer", results)
    return results
