"""Results of protocols, and the files that record them."""

import dataclasses
import json
import logging
import pathlib
from typing import Any

from simclr_jax.errors import EncoderChanged
from simclr_jax.evaluation import metrics
from simclr_jax.evaluation.context import Context
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic
from simclr_jax.weights import encoder as encoders

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a protocol.

    Attributes:
      value: the figure, in [0, 1].
      settings: the protocol's settings, for the receipt.
      metric: the name of the figure's metric.
      values: all figures by name, if there are several.
    """

    value: float
    settings: dict[str, Any]
    metric: str = metrics.TOP1
    values: dict[str, float] = dataclasses.field(default_factory=dict)


# A protocol's results by representation.
Results = dict[str, Result]


def encoder_checksum(context: Context) -> str:
    """The checksum of the measured encoder's weights."""
    assert context.network is not None
    return encoders.checksum(context.network.variables)


def write(
    name: str,
    results: Results,
    context: Context,
    checksum_before: str,
    *,
    data: dict[str, Any] | None = None,
) -> None:
    """Writes `eval/<name>.json`, on process 0.

    Args:
      name: the protocol's name.
      results: by representation.
      context: the context of the pretrained encoder.
      checksum_before: from `encoder_checksum`, before the protocol ran.
      data: the receipt's entries about the images; from the context's dataset when
        None.

    Raises:
      EncoderChanged: the protocol changed the encoder; nothing is written.
    """
    after = encoder_checksum(context)
    if after != checksum_before:
        raise EncoderChanged(
            f"--protocol={name}: changed the encoder (checksum {checksum_before[:12]} "
            f"to {after[:12]}), so its figure is invalid; nothing was written"
        )
    network, result = context.network, results["pretrained"]
    assert network is not None
    receipt = {
        "protocol": name,
        "value": result.value,
        "metric": result.metric,
        "values": result.values,
        "settings": result.settings,
        "baselines": {
            other: results[other].value for other in results if other != "pretrained"
        },
        "layer": context.config.evaluation.layer,
        "preprocessing": dataclasses.asdict(context.preprocessing),
        **(data or _describe_data(context)),
        "checkpoint_step": network.step,
        "config_hash": network.config_hash,
        "encoder_checksum_before": checksum_before,
        "encoder_checksum_after": after,
    }
    if processes.is_main():
        path = pathlib.Path(context.workdir) / "eval" / f"{name}.json"
        atomic.write_file(path, json.dumps(receipt, indent=2) + "\n")
        _LOG.info("wrote %s", path)


def _describe_data(context: Context) -> dict[str, Any]:
    dataset = context.dataset
    return {
        "dataset": dataset.name,
        "train_split": dataset.train_split,
        "test_split": dataset.test_split,
        "num_train": dataset.train.num_examples,
        "num_test": dataset.test.num_examples,
    }
