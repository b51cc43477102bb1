"""The formats for torchvision and timm, and what all formats for PyTorch share."""

import math
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save

from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.models import DEPTHS, normalization
from simclr_jax.models.blocks import BASE_FILTERS
from simclr_jax.models.simclr import Tree
from simclr_jax.weights import classifiers, descriptions
from simclr_jax.weights.descriptions import FOLDER
from simclr_jax.weights.encoder import PretrainedEncoder, settings_of
from simclr_jax.weights.torch_files import read_state_dict
from simclr_jax.weights.torchvision import from_torchvision, to_torchvision

WEIGHTS, PICKLED_WEIGHTS = "model.safetensors", "model.pth"
CONFIG = "config.json"
_WEIGHT, _BIAS = "fc.weight", "fc.bias"
_BY_NAME = (18, 34, 50, 101, 152)  # the depths that torchvision has functions for
# PyTorch's default; none of the libraries has an option for it.
_EPSILON = 1e-5


def limits(settings: dict[str, Any]) -> list[str]:
    """The reasons why no PyTorch library can express an encoder."""
    reasons = []
    if settings["sk_ratio"] > 0:
        reasons.append(f"selective kernels (encoder.sk_ratio={settings['sk_ratio']})")
    if settings["se_ratio"] > 0:
        reasons.append(
            f"squeeze-and-excitation (encoder.se_ratio={settings['se_ratio']})"
        )
    if settings["first_group_projection"] and not DEPTHS[settings["depth"]][0]:
        reasons.append(
            "a projection shortcut in the first group of basic blocks "
            "(encoder.first_group_projection=True)"
        )
    if settings["stem"] == "imagenet" and settings["max_pool_padding"] != "torch":
        reasons.append(
            "a max-pool with TensorFlow's padding (encoder.max_pool_padding="
            f"{settings['max_pool_padding']!r})"
        )
    if settings["batch_norm_epsilon"] != _EPSILON:
        reasons.append(
            f"encoder.batch_norm_epsilon={settings['batch_norm_epsilon']} "
            f"(PyTorch's ResNets have {_EPSILON})"
        )
    return reasons


def width_limits(settings: dict[str, Any]) -> list[str]:
    """The reasons of torchvision and timm, whose stems have 64 filters."""
    if num_filters(settings, 0) == BASE_FILTERS:
        return []
    return [f"encoder.width={settings['width']:g} (their stems have 64 filters)"]


def stem_limits(settings: dict[str, Any]) -> list[str]:
    """The reasons of timm and transformers, whose stems have stride and max-pool."""
    if settings["stem"] == "imagenet":
        return []
    return [f"the stem for small images (encoder.stem={settings['stem']!r})"]


def write_torchvision(folder: pathlib.Path, pretrained: PretrainedEncoder) -> str:
    """Writes `model.safetensors` with torchvision's names."""
    save_tensors(folder, _arrays(pretrained), pretrained.step)
    settings = settings_of(pretrained.encoder)
    classes = pretrained.model.num_classes
    argument = "" if classes is None else f"num_classes={classes}"
    bottleneck, depths = DEPTHS[settings["depth"]]
    model = f"models.resnet{settings['depth']}({argument})"
    if settings["depth"] not in _BY_NAME:
        block = "Bottleneck" if bottleneck else "BasicBlock"
        arguments = [f"models.resnet.{block}", str(list(depths)), argument]
        model = f"models.ResNet({', '.join(filter(None, arguments))})"
    stem = ""
    if settings["stem"] == "cifar":
        stem = (
            "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)\n"
            "model.maxpool = torch.nn.Identity()\n"
        )
    lines = (
        "import torch\nfrom safetensors.torch import load_file\n"
        f"from torchvision import models\n\nmodel = {model}\n{stem}"
    )
    load = (
        f'weights = load_file("{FOLDER}/{WEIGHTS}")\n'
        "model.load_state_dict(weights, strict=True)\n"
    )
    transform = _torchvision_transform(pretrained)
    if classes is None:
        return (
            f"{lines}model.fc = torch.nn.Identity()\n{load}{transform}"
            "h = model.eval()(images)  # preprocessed, [N, 3, S, S]"
        )
    return (
        f"import json\n{lines}{load}{transform}"
        "logits = model.eval()(images)  # preprocessed, [N, 3, S, S]\n"
        f'names = json.load(open("{FOLDER}/{classifiers.NAMES}"))'
    )


def _torchvision_transform(pretrained: PretrainedEncoder) -> str:
    """The transform of a PIL image, for encoders that it suits."""
    preprocessing = pretrained.preprocessing
    if preprocessing.resize != "bicubic_antialias":
        return ""
    mean, std = moments(pretrained)
    return (
        "from torchvision import transforms\n\n"
        "transform = transforms.Compose([\n"
        f"    transforms.Resize({shorter_side(preprocessing)}, "
        "transforms.InterpolationMode.BICUBIC, antialias=True),\n"
        f"    transforms.CenterCrop({preprocessing.image_size}),\n"
        "    transforms.ToTensor(),\n"
        f"    transforms.Normalize({mean}, {std}),\n"
        "])\n"
    )


def shorter_side(preprocessing: Preprocessing) -> int:
    """To which the libraries resize before they crop."""
    return math.floor(preprocessing.image_size / preprocessing.crop_proportion)


def write_timm(folder: pathlib.Path, pretrained: PretrainedEncoder) -> str:
    """Writes `model.safetensors` and `config.json` for timm's 'local-dir:' models."""
    save_tensors(folder, _arrays(pretrained), pretrained.step)
    classes = pretrained.model.num_classes or 0
    size = pretrained.preprocessing.image_size
    mean, std = moments(pretrained)
    config: dict[str, Any] = {
        "architecture": f"resnet{pretrained.encoder.depth}",
        "num_classes": classes,
        "num_features": pretrained.encoder.feature_width,
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "simclr",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": pretrained.preprocessing.crop_proportion,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": classes,
            "pool_size": [math.ceil(size / 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    if classes:
        config["pretrained_cfg"]["label_names"] = classifiers.names(pretrained)
    descriptions.write_json(folder / CONFIG, config)
    forward = ""
    if classes:
        forward = (
            "\nlogits = model(images)  # transformed, [N, 3, S, S]\n"
            'names = model.pretrained_cfg["label_names"]'
        )
    return (
        "import timm\n\n"
        f'model = timm.create_model("local-dir:{FOLDER}", pretrained=True).eval()\n'
        "data = timm.data.resolve_data_config({}, model=model)\n"
        "transform = timm.data.create_transform(**data)" + forward
    )


def _arrays(pretrained: PretrainedEncoder) -> dict[str, np.ndarray]:
    arrays = to_torchvision(pretrained.variables)
    if pretrained.model.num_classes is not None:
        arrays[_WEIGHT], arrays[_BIAS] = classifiers.linear(pretrained)
    return arrays


def read_classifier(folder: pathlib.Path, like: Tree) -> Tree:
    """The heads of a folder with torchvision's names; `like` has their shapes.

    Raises:
      DataError: the file cannot be read, or lacks a tensor.
    """
    del like
    file = str(folder / WEIGHTS)
    arrays = read_state_dict(file)
    return classifiers.from_linear(arrays, weight=_WEIGHT, bias=_BIAS, file=file)


def read(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables of a folder with torchvision's names.

    Raises:
      DataError: the file cannot be read, or its tensors do not fit.
    """
    file = str(folder / WEIGHTS)
    return to_variables(read_state_dict(file), settings, file)


def to_variables(
    arrays: dict[str, np.ndarray], settings: dict[str, Any], file: str
) -> Tree:
    """{'params', 'batch_stats'} from arrays with torchvision's names; see `read`."""
    weights = from_torchvision(
        arrays, normalization=settings["normalization"], prefix="", file=file
    )
    return weights.variables


def save_tensors(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], step: int
) -> None:
    """Writes arrays and the update counters of BatchNorms as `model.safetensors`."""
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # PyTorch's BatchNorms count their updates; strict loading needs the counters.
    for name in arrays:
        if name.endswith(".running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            tensors[counter] = np.array(step, np.int64)
    # `save_file` would make the file readable for its owner only.
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def moments(pretrained: PretrainedEncoder) -> tuple[list[float], list[float]]:
    """(mean, std) that the library's transform subtracts and divides by."""
    values = normalization.moments(pretrained.encoder.normalization)
    return (list(values[0]), list(values[1])) if values else ([0.0] * 3, [1.0] * 3)


def num_filters(settings: dict[str, Any], group: int) -> int:
    """Filters of the 3x3 convolutions in a group of blocks, counted from 0."""
    return max(1, round(BASE_FILTERS * settings["width"])) * 2**group
