"""The model card of an export: architecture, how to load it, training, figures."""

import re
from typing import Any

from etils import epath

from simclr_jax.errors import printable
from simclr_jax.weights import classifiers, convert, descriptions
from simclr_jax.weights.encoder import PretrainedEncoder, checksum, settings_of
from simclr_jax.weights.formats import Format
from simclr_jax.weights.parity import Parity

_NO_ANTIALIASING = (
    "{} resizes with antialiasing, and this encoder was evaluated without it: features "
    "of images much larger than {} pixels differ a little. `preprocessing.json` is "
    "exact, and `simclr_jax.load(...).encode` follows it."
)

_ANTIALIASING = (
    "{} resizes with the same antialiased bicubic; features differ by the rounding to "
    "256 levels and to whole pixels. `preprocessing.json` is exact, and "
    "`simclr_jax.load(...).encode` follows it."
)


_SHOWN, _SHOWN_LETTERS = 20, 80  # classes, and letters of each


def text(
    format_: Format,
    pretrained: PretrainedEncoder,
    parity: Parity,
    *,
    lines: str,
    workdir: epath.Path,
) -> str:
    """The model card in Markdown, with `descriptions.FOLDER` as the folder's name.

    Args:
      format_: of the export.
      pretrained: from `encoder.without_heads`.
      parity: the comparison with the original.
      lines: Python that opens the folder, from `Format.write`.
      workdir: the run directory, which holds the receipts of evaluations.
    """
    settings = settings_of(pretrained.encoder)
    classes = pretrained.model.num_classes
    sections = [
        f"# {architecture(settings)}, {_kind(pretrained, workdir)}",
        _summary(settings, pretrained),
        f"## How to load it\n\n```python\n{lines}\n```\n\n"
        "Or, with its preprocessing applied: "
        f'`h = simclr_jax.load("{descriptions.FOLDER}").encode(images)`'
        + (", `.classify(images)` for logits. " if classes else ". ")
        + format_.remark,
        *([_classes(pretrained)] if classes else []),
        "## Preprocessing\n\n" + _preprocessing(format_, pretrained),
        "## How it was trained\n\n" + _training(pretrained, workdir),
        "## Figures\n\n" + _figures(workdir, pretrained),
        "## Parity\n\n" + "\n".join(f"- {plain(line)}" for line in parity.lines()),
    ]
    return "\n\n".join(section.rstrip() for section in sections) + "\n"


def in_quotes(text: str) -> str:
    """A text between the double quotes of Python code that stands in Markdown."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\x60")
    return printable(text)


def plain(text: Any) -> str:
    """A text that Markdown shows as it is: no table's end, no HTML, no link."""
    return re.sub(r"([\\`*|<>\[\]~&])", r"\\\1", printable(str(text)))


def architecture(settings: dict[str, Any]) -> str:
    """An encoder's name, such as 'ResNet-50 2x+SK'."""
    width = "" if settings["width"] == 1 else f" {settings['width']:g}x"
    selective = "+SK" if settings["sk_ratio"] > 0 else ""
    excited = "+SE" if settings["se_ratio"] > 0 else ""
    return f"ResNet-{settings['depth']}{width}{selective}{excited}"


def _kind(pretrained: PretrainedEncoder, workdir: epath.Path) -> str:
    if (workdir / convert.RECEIPT).exists():
        return "imported weights"
    if "distill" in pretrained.config:
        return "distilled from a teacher"
    if "finetune" in pretrained.config:
        return "fine-tuned with labels"
    return "pretrained with SimCLR"


def _objective(config: dict[str, Any]) -> list[str]:
    """What was minimised, from which weights and with which labels."""
    if tuning := config.get("finetune"):
        start = plain(tuning["init_from"])
        start = "random weights" if start == "random" else f"the weights of {start}"
        frozen = tuning["after_group"]
        return [
            "objective: cross entropy of the labels, of "
            f"{100 * tuning['label_fraction']:g} % of each class's images",
            f"started from {start}, with a new classifier on "
            + {0: "h", -1: "z"}.get(
                tuning["layer"], f"layer {tuning['layer']} of the projection head"
            )
            + (f"; groups up to {frozen} were frozen" if frozen >= 0 else ""),
        ]
    if distilling := config.get("distill"):
        weight = distilling["labelled_weight"]
        mixed = (
            f", and with weight {weight:g} of the labels of "
            f"{100 * distilling['label_fraction']:g} % of each class's images"
            if weight
            else ", without labels"
        )
        start = distilling["init_from"]
        return [
            "objective: cross entropy of the classes that the teacher predicts, at "
            f"temperature {distilling['temperature']:g}{mixed}",
            f"teacher: {plain(distilling['teacher'])}",
            f"started from {'random weights' if start is None else plain(start)}",
        ]
    loss = config["loss"]
    return [f"objective: {loss['name']}, temperature {loss['temperature']:g}"]


def _classes(pretrained: PretrainedEncoder) -> str:
    """The first classes; all are in the file."""
    names = classifiers.names(pretrained)
    lines = []
    for i, name in enumerate(names[:_SHOWN]):
        end = "..." if len(name) > _SHOWN_LETTERS else ""
        lines.append(f"- {i}: {plain(name[:_SHOWN_LETTERS] + end)}")
    more = len(names) - _SHOWN
    text = f"`{classifiers.NAMES}` has all names, in the order of the logits."
    if pretrained.class_names is None:
        text += " The run recorded no names, so they are numbered."
    if more > 0:
        lines.append(f"- and {more} more")
    return f"## Classes\n\n{text}\n\n" + "\n".join(lines)


def _summary(settings: dict[str, Any], pretrained: PretrainedEncoder) -> str:
    width = pretrained.encoder.feature_width
    stem = {
        "imagenet": "strided, with a max-pool (ImageNet's)",
        "cifar": "3x3, stride 1, no max-pool (CIFAR's)",
    }[settings["stem"]]
    if settings["sk_ratio"] > 0:
        stem += ", of three convolutions" if settings["stem"] == "imagenet" else ""
    size = pretrained.preprocessing.image_size
    parts = "An encoder without projection head or classifier"
    if classes := pretrained.model.num_classes:
        parts = f"An encoder and its classifier of {classes} classes"
    return (
        f"{parts}: from images of {size} "
        f"pixels to h, {width} features, the average over the last feature map. "
        f"Weights and computation are float32.\n\n- stem: {stem}\n- checkpoint: step "
        f"{pretrained.step}\n- `{descriptions.ENCODER}` has every setting, "
        f"`{descriptions.PREPROCESSING}` the preprocessing, `{descriptions.PARITY}` "
        "the comparison with the original"
    )


def _preprocessing(format_: Format, pretrained: PretrainedEncoder) -> str:
    content = descriptions.describe_preprocessing(
        pretrained, normalizes=format_.normalizes
    )
    lines = [f"{i}. {step}" for i, step in enumerate(content["steps"], start=1)]
    size = content["image_size"]
    lines.append(
        f"\nwith image_size {size}, crop_proportion {content['crop_proportion']}. "
        "Channels are RGB."
    )
    normalization = content["normalization"]
    if normalization is None:
        lines.append("No mean is subtracted, and no standard deviation divided by.")
    elif format_.normalizes:
        lines.append(
            f"The encoder itself subtracts the mean {normalization['mean']} and "
            f"divides by the standard deviation {normalization['std']}."
        )
    else:
        lines.append(
            f"Then subtract the mean {normalization['mean']} and divide by the "
            f"standard deviation {normalization['std']}."
        )
    if format_.resizer:
        antialias = pretrained.preprocessing.resize == "bicubic_antialias"
        remark = _ANTIALIASING if antialias else _NO_ANTIALIASING
        lines.append("\n" + remark.format(format_.resizer, size))
    return "\n".join(lines)


def _training(pretrained: PretrainedEncoder, workdir: epath.Path) -> str:
    receipt = workdir / convert.RECEIPT
    if receipt.exists():
        source = descriptions.read_json(receipt)
        return (
            "Not by simclr_jax: the weights were imported "
            f"({plain(source['layout'])}), and their training is not recorded."
        )
    config = pretrained.config
    schedule, optimizer = config["schedule"], config["optimizer"]
    lines = [
        f"dataset: {plain(config['data']['dataset'])}, split "
        f"{plain(config['data']['split'])}",
        f"views: {', '.join(config['augment']['operations'])}, of "
        f"{config['image_size']} pixels",
        f"{config['batch']['batch_size']} images a batch, step {pretrained.step} of "
        f"{schedule['train_steps']} (train_epochs {schedule['train_epochs']:g}, "
        "which train_steps overrides if it is set)",
        *_objective(config),
        f"optimizer: {optimizer['name']}, learning rate {optimizer['learning_rate']:g} "
        f"(scaling {optimizer['scaling']}), weight decay {optimizer['weight_decay']:g}",
        f"config hash: {pretrained.config_hash}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _figures(workdir: epath.Path, pretrained: PretrainedEncoder) -> str:
    rows, own = [], checksum(pretrained.variables)
    folder = workdir / "eval"
    # Those on other datasets are in folders of their own.
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        receipt = descriptions.read_json(path)
        # Only receipts of these weights and of h, and not the mean over datasets.
        if receipt.get("encoder_checksum_after") != own or receipt.get("layer", 0):
            continue
        if "test_split" not in receipt:
            continue
        # Without the classifier, the export cannot give its figure.
        if receipt["protocol"] == "classifier" and not pretrained.model.num_classes:
            continue
        rows.append(
            f"| {plain(receipt['protocol'])} | {plain(receipt['metric'])} | "
            f"{100 * receipt['value']:.1f} % | {plain(receipt['dataset'])}, "
            f"{plain(receipt['test_split'])} ({receipt['num_test']} images) |"
        )
    if not rows:
        return "These weights were not evaluated (`python -m simclr_jax.evaluate`)."
    return "\n".join(["| protocol | metric | value | on |", "|---|---|---|---|", *rows])
