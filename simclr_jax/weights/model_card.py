"""The model card: what the encoder is, how to open it, what it was measured at."""

import json
import pathlib
from typing import Any

from simclr_jax.models import DEPTHS
from simclr_jax.weights import convert, jax_formats, torch_formats
from simclr_jax.weights import export_folder as folders
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.parity import Parity

_RESNETS = (18, 34, 50, 101, 152)  # that torchvision has by name
_ANTIALIASING = (
    "{} resizes with antialiasing, and this encoder was evaluated without: features of "
    "images much larger than {} pixels differ a little. Exact is `preprocessing.json`, "
    "which `simclr_jax.load(...).encode` follows."
)


def text(
    name: str,
    pretrained: PretrainedEncoder,
    parity: Parity,
    *,
    workdir: str,
    checksum: str,
    place: str,
) -> str:
    """The card in Markdown.

    Args:
      name: of the format.
      pretrained: from `folder.exact`.
      parity: how the export compares with the original.
      workdir: the run directory, for its receipts.
      checksum: of the run's encoder, which receipts name.
      place: the name of the exported folder.
    """
    settings = folders.settings_of(pretrained.encoder)
    sections = [
        f"# {architecture(settings)}, pretrained with SimCLR",
        _summary(settings, pretrained),
        f"## How to load it\n\n```python\n{_snippet(name, settings, place)}\n```\n\n"
        f"Or, with its preprocessing applied: "
        f'`h = simclr_jax.load("{place}").encode(images)`.' + _remarks(name),
        "## Preprocessing\n\n" + _preprocessing(name, pretrained),
        "## How it was trained\n\n" + _training(pretrained, pathlib.Path(workdir)),
        "## Figures\n\n" + _figures(pathlib.Path(workdir), checksum),
        "## Parity\n\n" + "\n".join(f"- {line}" for line in parity.lines()),
    ]
    return "\n\n".join(sections) + "\n"


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
        f"An encoder without projection head or classifier: images of {size} pixels to "
        f"h, {width} numbers, the average over the last feature map. Weights and "
        f"computation are float32.\n\n- stem: {stem}\n- checkpoint: step "
        f"{pretrained.step}\n- `{folders.ENCODER}` has every setting, "
        f"`{folders.PREPROCESSING}` what images go through, `{folders.PARITY}` the "
        "comparison with the original"
    )


def _snippet(name: str, settings: dict[str, Any], place: str) -> str:
    if name == "torchvision":
        return _torchvision(settings, place)
    return {
        "timm": "import timm\n\n"
        f'model = timm.create_model("local-dir:{place}", pretrained=True).eval()\n'
        "data = timm.data.resolve_data_config({}, model=model)\n"
        "transform = timm.data.create_transform(**data)",
        "huggingface": "from transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{place}")\n'
        f'model = AutoModel.from_pretrained("{place}").eval()\n'
        'outputs = model(**processor(images, return_tensors="pt"))\n'
        "h = outputs.pooler_output.flatten(1)",
        "safetensors": "import simclr_jax\n\n"
        f'encoder = simclr_jax.load("{place}")\n'
        "h = encoder.encode(images)  # uint8 [N, H, W, 3]\n"
        "module, variables = encoder.encoder, encoder.variables",
        "orbax": "import orbax.checkpoint as ocp\n"
        "from simclr_jax import models\n\n"
        f'path = "/absolute/path/{place}/{jax_formats.CHECKPOINT}"\n'
        "variables = ocp.StandardCheckpointer().restore(path)\n"
        f"module = models.create_encoder({_arguments(settings)})\n"
        "h = module.apply(variables, images)  # prepared",
        "stablehlo": "import pathlib\nfrom jax import export\n\n"
        f'file = pathlib.Path("{place}/{jax_formats.PROGRAM}")\n'
        "program = export.deserialize(bytearray(file.read_bytes()))\n"
        "h = program.call(images)  # prepared",
    }[name]


def _torchvision(settings: dict[str, Any], place: str) -> str:
    bottleneck, depths = DEPTHS[settings["depth"]]
    maker = f"models.resnet{settings['depth']}()"
    if settings["depth"] not in _RESNETS:
        block = "Bottleneck" if bottleneck else "BasicBlock"
        maker = f"models.ResNet(models.resnet.{block}, {list(depths)})"
    surgery = ""
    if settings["stem"] == "cifar":
        surgery = (
            "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)\n"
            "model.maxpool = torch.nn.Identity()\n"
        )
    return (
        "import torch\nfrom safetensors.torch import load_file\n"
        f"from torchvision import models\n\nmodel = {maker}\n"
        f"model.fc = torch.nn.Identity()\n{surgery}"
        f'weights = load_file("{place}/{torch_formats.WEIGHTS}")\n'
        "model.load_state_dict(weights, strict=True)\n"
        "h = model.eval()(images)  # prepared, [N, 3, S, S]"
    )


def _arguments(settings: dict[str, Any]) -> str:
    """Those of `create_encoder` that change what is computed."""
    left_out = ("dtype", "kernel_init", "batch_norm_momentum")
    return ", ".join(
        f"{key}={value!r}" for key, value in settings.items() if key not in left_out
    )


def _remarks(name: str) -> str:
    return {
        "stablehlo": " The program is for any number of images and for "
        f"{', '.join(jax_formats.PLATFORMS)}; it needs JAX alone, has the weights "
        "inside and multiplies at the highest precision.",
        "timm": " timm's `num_classes=10` puts a new classifier on it.",
        "torchvision": " Without the line about `fc`, load with `strict=False`, or put "
        "a classifier of your own there afterwards.",
    }.get(name, "")


def _preprocessing(name: str, pretrained: PretrainedEncoder) -> str:
    said = folders.preprocessing(pretrained, inside=False)
    lines = [f"{i}. {step}" for i, step in enumerate(said["steps"], start=1)]
    values = (
        f"image_size {said['image_size']}, crop_proportion {said['crop_proportion']}"
    )
    lines.append(f"\nwith {values}. Channels are RGB.")
    normalization, inside = said["normalization"], not _is_for_torch(name)
    if normalization is None:
        lines.append("There is no mean or standard deviation to take out.")
    elif inside:
        lines.append("The encoder takes out ImageNet's mean and deviation itself.")
    else:
        lines.append(
            f"Then take out the mean {normalization['mean']} and divide by "
            f"{normalization['std']}."
        )
    library = {
        "torchvision": "torchvision's `Resize`, like PIL,",
        "timm": "timm's transform crops after resizing, which is the same up to a "
        "pixel; it",
        "huggingface": "The image processor crops after resizing, which is the same up "
        "to a pixel; it",
    }.get(name)
    if library:
        size = said["image_size"]
        lines.append("\n" + _ANTIALIASING.format(library, size))
    return "\n".join(lines)


def _is_for_torch(name: str) -> bool:
    return name in ("torchvision", "timm", "huggingface")


def _training(pretrained: PretrainedEncoder, workdir: pathlib.Path) -> str:
    receipt = workdir / convert.RECEIPT
    if receipt.exists():
        source = folders.read_json(receipt)
        return (
            f"Not by simclr_jax: the weights were imported ({source['layout']}). How "
            "they were trained is not known here."
        )
    config = pretrained.config
    schedule, loss, optimizer = config["schedule"], config["loss"], config["optimizer"]
    lines = [
        f"dataset: {config['data']['dataset']}, split {config['data']['split']}",
        f"views: {', '.join(config['augment']['operations'])}, of "
        f"{config['image_size']} pixels",
        f"{config['batch']['batch_size']} images a batch, step {pretrained.step} of "
        f"{schedule['train_steps']} (train_epochs {schedule['train_epochs']:g}, "
        "which train_steps overrides where it was given)",
        f"objective: {loss['name']}, temperature {loss['temperature']:g}",
        f"optimizer: {optimizer['name']}, learning rate {optimizer['learning_rate']:g} "
        f"(scaling {optimizer['scaling']}), weight decay {optimizer['weight_decay']:g}",
        f"config hash: {pretrained.config_hash}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _figures(workdir: pathlib.Path, checksum: str) -> str:
    rows = []
    for path in sorted((workdir / "eval").glob("*.json")):
        receipt = json.loads(path.read_text(encoding="utf-8"))
        # Of these very weights, and of h.
        if receipt.get("encoder_checksum_after") != checksum or receipt.get("layer", 0):
            continue
        rows.append(
            f"| {receipt['protocol']} | {receipt['metric']} | "
            f"{100 * receipt['value']:.1f} % | {receipt['dataset']}, "
            f"{receipt['test_split']} ({receipt['num_test']} images) |"
        )
    if not rows:
        return "None were measured of these weights (`python -m simclr_jax.evaluate`)."
    return "\n".join(["| protocol | metric | value | on |", "|---|---|---|---|", *rows])
