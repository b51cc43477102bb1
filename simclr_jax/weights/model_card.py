"""The model card of an export: architecture, how to load it, training, figures."""

import re
from typing import Any

from etils import epath

from simclr_jax.errors import printable
from simclr_jax.weights import convert, descriptions
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
    sections = [
        f"# {architecture(settings)}, pretrained with SimCLR",
        _summary(settings, pretrained),
        f"## How to load it\n\n```python\n{lines}\n```\n\n"
        "Or, with its preprocessing applied: "
        f'`h = simclr_jax.load("{descriptions.FOLDER}").encode(images)`. '
        + format_.remark,
        "## Preprocessing\n\n" + _preprocessing(format_, pretrained),
        "## How it was trained\n\n" + _training(pretrained, workdir),
        "## Figures\n\n" + _figures(workdir, checksum(pretrained.variables)),
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


def _summary(settings: dict[str, Any], pretrained: PretrainedEncoder) -> str:
    width = pretrained.encoder.feature_width
    stem = {
        "imagenet": "strided, with a max-pool (ImageNet's)",
        "cifar": "3x3, stride 1, no max-pool (CIFAR's)",
    }[settings["stem"]]
    if settings["sk_ratio"] > 0:
        stem += ", of three convolutions" if settings["stem"] == "imagenet" else ""
    size = pretrained.preprocessing.image_size
    return (
        f"An encoder without projection head or classifier: from images of {size} "
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
    schedule, loss, optimizer = config["schedule"], config["loss"], config["optimizer"]
    lines = [
        f"dataset: {plain(config['data']['dataset'])}, split "
        f"{plain(config['data']['split'])}",
        f"views: {', '.join(config['augment']['operations'])}, of "
        f"{config['image_size']} pixels",
        f"{config['batch']['batch_size']} images a batch, step {pretrained.step} of "
        f"{schedule['train_steps']} (train_epochs {schedule['train_epochs']:g}, "
        "which train_steps overrides if it is set)",
        f"objective: {loss['name']}, temperature {loss['temperature']:g}",
        f"optimizer: {optimizer['name']}, learning rate {optimizer['learning_rate']:g} "
        f"(scaling {optimizer['scaling']}), weight decay {optimizer['weight_decay']:g}",
        f"config hash: {pretrained.config_hash}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _figures(workdir: epath.Path, checksum: str) -> str:
    rows = []
    folder = workdir / "eval"
    # Those on other datasets are in folders of their own.
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        receipt = descriptions.read_json(path)
        # Only receipts of these weights and of h, and not the mean over datasets.
        if receipt.get("encoder_checksum_after") != checksum or receipt.get("layer", 0):
            continue
        if "test_split" not in receipt:
            continue
        rows.append(
            f"| {plain(receipt['protocol'])} | {plain(receipt['metric'])} | "
            f"{100 * receipt['value']:.1f} % | {plain(receipt['dataset'])}, "
            f"{plain(receipt['test_split'])} ({receipt['num_test']} images) |"
        )
    if not rows:
        return "These weights were not evaluated (`python -m simclr_jax.evaluate`)."
    return "\n".join(["| protocol | metric | value | on |", "|---|---|---|---|", *rows])
