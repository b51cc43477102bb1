"""Results of protocols, and the files that record them."""

import dataclasses
import hashlib
import json
import logging
import re
from typing import Any

import numpy as np
from etils import epath

from simclr_jax import paths
from simclr_jax.errors import EncoderChanged, printable
from simclr_jax.evaluation import class_figures, datasets, features, metrics
from simclr_jax.evaluation.class_figures import CONFIDENCE, ClassFigures
from simclr_jax.evaluation.context import Context
from simclr_jax.parallel import processes
from simclr_jax.runs import atomic
from simclr_jax.weights import encoder as encoders

_LOG = logging.getLogger(__name__)
_MAX_NAME = 120  # of a folder; file systems take 255 bytes


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a protocol.

    Attributes:
      value: the figure, in [0, 1].
      settings: the protocol's settings, for the receipt.
      metric: the name of the figure's metric.
      values: all figures by name, if there are several.
      classes: what the figure is worth; None where images may have several classes, or
        for a summary.
    """

    value: float
    settings: dict[str, Any]
    metric: str = metrics.TOP1
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    classes: ClassFigures | None = None


# A protocol's results by representation.
Results = dict[str, Result]


def judge(
    context: Context,
    predicted: np.ndarray,
    settings: dict[str, Any],
    *,
    metric: str = metrics.TOP1,
    values: dict[str, float] | None = None,
) -> Result:
    """The result of a classifier on the test images.

    Args:
      context: whose test features were classified.
      predicted: the classes [N], or scores [N, classes] if images may have several.
      settings: of the protocol.
      metric: of the figure, a key of `metrics.METRICS`.
      values: further figures.
    """
    labels, test = context.test_features.labels, context.dataset.test
    return Result(
        metrics.METRICS[metric](predicted, labels),
        settings,
        metric=metric,
        values=values or {},
        classes=class_figures.count(
            predicted, labels, num_classes=test.num_classes, names=test.class_names
        ),
    )


def encoder_checksum(context: Context) -> str:
    """The checksum of the measured encoder's weights."""
    assert context.network is not None
    return encoders.checksum(context.network.variables)


def folder(context: Context) -> epath.Path:
    """The folder of what is measured on a dataset.

    `eval/` for the run's own; `eval/<dataset>/` for another one, with other characters
    than letters, digits, '.', '_' and '-' replaced by '-', and the end of a long name
    by a checksum.
    """
    network = context.network
    assert network is not None
    root = paths.as_path(context.workdir) / "eval"
    if context.dataset.name == network.config["data"]["dataset"]:
        return root
    name = context.dataset.name
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if len(short) > _MAX_NAME or not short:
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        short = f"{short[:_MAX_NAME]}-{digest[:8]}"
    return root / short


def check_unchanged(name: str, context: Context, checksum_before: str) -> None:
    """Raises EncoderChanged if a protocol has changed the encoder.

    Args:
      name: the protocol's name.
      context: the context of the pretrained encoder.
      checksum_before: from `encoder_checksum`, before the protocol ran.
    """
    after = encoder_checksum(context)
    if after != checksum_before:
        raise EncoderChanged(
            f"--protocol={name}: changed the encoder (checksum {checksum_before[:12]} "
            f"to {after[:12]}), so its figure is invalid; nothing was written"
        )


def write(
    name: str,
    results: Results,
    context: Context,
    checksum_before: str,
    *,
    is_summary: bool = False,
) -> None:
    """Writes `<name>.json` and `<name>.confusion.csv`, on process 0.

    They go into `folder(context)`; the second one where each image has one class.

    Those of the transfer suite go into `eval/`, since their names contain the dataset.

    Args:
      name: the protocol's name.
      results: by representation.
      context: the context of the pretrained encoder.
      checksum_before: from `encoder_checksum`, before the protocol ran.
      is_summary: of several datasets.

    Raises:
      EncoderChanged: the protocol changed the encoder; nothing is written.
    """
    check_unchanged(name, context, checksum_before)
    network, result = context.network, results["pretrained"]
    assert network is not None
    receipt = {
        "protocol": name,
        "value": result.value,
        "metric": result.metric,
        "values": result.values,
        **_describe_classes(name, results),
        "settings": result.settings,
        "baselines": {
            other: results[other].value for other in results if other != "pretrained"
        },
        **({"pixels": _describe_pixels(context)} if "pixels" in results else {}),
        "layer": context.config.evaluation.layer,
        "preprocessing": dataclasses.asdict(context.preprocessing),
        **({"dataset": "transfer"} if is_summary else _describe_data(context)),
        "checkpoint_step": network.step,
        "config_hash": network.config_hash,
        "encoder_checksum_before": checksum_before,
        "encoder_checksum_after": checksum_before,
    }
    if processes.is_main():
        in_suite = name.partition("/")[0] == "transfer"
        root = paths.as_path(context.workdir) / "eval" if in_suite else folder(context)
        path = root / f"{name}.json"
        if result.classes is not None:
            # First: the receipt names it.
            atomic.write_file(_matrix_beside(path), result.classes.as_csv())
        atomic.write_file(path, json.dumps(receipt, indent=2) + "\n")
        _LOG.info("wrote %s", path)


def _matrix_beside(receipt: epath.Path) -> epath.Path:
    return receipt.with_name(f"{receipt.stem}.confusion.csv")


def _describe_classes(name: str, results: Results) -> dict[str, Any]:
    classes = results["pretrained"].classes
    if classes is None:
        return {}
    baselines = {
        other: result.classes.summary()
        for other, result in results.items()
        if other != "pretrained" and result.classes is not None
    }
    return {
        "confidence": CONFIDENCE,
        **classes.summary(),
        "classes_without_test_images": [*map(printable, classes.without_images)],
        "by_class": classes.by_class(),
        "confusion_matrix": _matrix_beside(epath.Path(f"{name}.json")).name,
        "baseline_figures": baselines,
    }


def _describe_pixels(context: Context) -> dict[str, int]:
    side = context.preprocessing.image_size
    return {"image_size": side, "shrunk_to": min(side, features.MAX_PIXELS_SIDE)}


def _describe_data(context: Context) -> dict[str, Any]:
    dataset = context.dataset
    absent = datasets.absent_classes(dataset)
    return {
        "dataset": dataset.name,
        "train_split": dataset.train_split,
        "test_split": dataset.test_split,
        "num_train": dataset.train.num_examples,
        "num_test": dataset.test.num_examples,
        **({"classes_without_images": absent} if absent else {}),
    }
