"""The format for Hugging Face's transformers: `ResNetModel` and its image processor.

Its names follow from torchvision's, and the other way round.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from simclr_jax.errors import DataError
from simclr_jax.models import DEPTHS
from simclr_jax.models.blocks import EXPANSION
from simclr_jax.models.simclr import Tree
from simclr_jax.weights import classifiers, descriptions, torch_formats
from simclr_jax.weights.descriptions import FOLDER
from simclr_jax.weights.encoder import PretrainedEncoder, settings_of
from simclr_jax.weights.torch_files import read_state_dict
from simclr_jax.weights.torchvision import to_torchvision

_PROCESSOR = "preprocessor_config.json"
_PIL_BICUBIC = 3
# Names in `ResNetForImageClassification`; `ResNetModel` has those without the prefix.
_PREFIX = "resnet."
_WEIGHT, _BIAS = "classifier.1.weight", "classifier.1.bias"
_KINDS = {"conv": "convolution", "bn": "normalization"}
_SHORTCUT = {"downsample.0": "convolution", "downsample.1": "normalization"}
_KINDS_BACK = {value: kind for kind, value in _KINDS.items()}
_SHORTCUT_BACK = {value: name for name, value in _SHORTCUT.items()}
_BLOCK = r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|(downsample\.[01]))\.(\w+)"
_BLOCK_BACK = (
    r"encoder\.stages\.(\d)\.layers\.(\d+)\."
    r"(?:layer\.(\d)|shortcut)\.(convolution|normalization)\.(\w+)"
)


def write(folder: pathlib.Path, pretrained: PretrainedEncoder) -> str:
    """Writes weights, config and image processor of a `transformers.ResNetModel`."""
    arrays = {
        _huggingface_name(name): array
        for name, array in to_torchvision(pretrained.variables).items()
    }
    classes = classifiers.names(pretrained)
    if classes:
        arrays = {_PREFIX + name: array for name, array in arrays.items()}
        arrays[_WEIGHT], arrays[_BIAS] = classifiers.linear(pretrained)
    torch_formats.save_tensors(folder, arrays, pretrained.step)
    settings = settings_of(pretrained.encoder)
    bottleneck, depths = DEPTHS[settings["depth"]]
    expansion = EXPANSION if bottleneck else 1
    widths = [torch_formats.num_filters(settings, group) for group in range(4)]
    config: dict[str, Any] = {
        "architectures": ["ResNetForImageClassification" if classes else "ResNetModel"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": widths[0],
        "hidden_sizes": [expansion * width for width in widths],
        "depths": list(depths),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "dtype": "float32",
    }
    if classes:
        config["id2label"] = {str(i): name for i, name in enumerate(classes)}
        config["label2id"] = {name: i for i, name in enumerate(classes)}
    descriptions.write_json(folder / torch_formats.CONFIG, config)
    descriptions.write_json(folder / _PROCESSOR, _processor(pretrained))
    if classes:
        return (
            "from transformers import (\n"
            "    AutoImageProcessor,\n    AutoModelForImageClassification,\n)\n\n"
            f'processor = AutoImageProcessor.from_pretrained("{FOLDER}")\n'
            "model = AutoModelForImageClassification.from_pretrained(\n"
            f'    "{FOLDER}"\n).eval()\n'
            'logits = model(**processor(images, return_tensors="pt")).logits\n'
            "names = [model.config.id2label[i] for i in range(logits.shape[1])]"
        )
    return (
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{FOLDER}")\n'
        f'model = AutoModel.from_pretrained("{FOLDER}").eval()\n'
        'outputs = model(**processor(images, return_tensors="pt"))\n'
        "h = outputs.pooler_output.flatten(1)"
    )


def _processor(pretrained: PretrainedEncoder) -> dict[str, Any]:
    size = pretrained.preprocessing.image_size
    shorter_side = torch_formats.shorter_side(pretrained.preprocessing)
    mean, std = torch_formats.moments(pretrained)
    return {
        # It keeps the aspect ratio; the default processor of ResNets squashes large
        # images.
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shorter_side},
        "resample": _PIL_BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": pretrained.encoder.normalization != "none",
        "image_mean": mean,
        "image_std": std,
    }


def read(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables of a folder with Hugging Face's names.

    Raises:
      DataError: the file cannot be read, or its tensors do not fit.
    """
    file = str(folder / torch_formats.WEIGHTS)
    tensors = read_state_dict(file)
    if _WEIGHT in tensors:
        tensors = {
            name.removeprefix(_PREFIX): array
            for name, array in tensors.items()
            if name.startswith(_PREFIX)
        }
    arrays = to_torchvision_names(tensors, file=file)
    return torch_formats.to_variables(arrays, settings, file)


def read_classifier(folder: pathlib.Path, like: Tree) -> Tree:
    """The heads of a folder with Hugging Face's names; as torchvision's."""
    del like
    file = str(folder / torch_formats.WEIGHTS)
    arrays = read_state_dict(file)
    return classifiers.from_linear(arrays, weight=_WEIGHT, bias=_BIAS, file=file)


def to_torchvision_names(
    state_dict: Mapping[str, np.ndarray], *, file: str
) -> dict[str, np.ndarray]:
    """A state dict with Hugging Face's names under torchvision's names.

    Raises:
      DataError: a name is not one of `ResNetModel`.
    """
    return {_torchvision_name(name, file): array for name, array in state_dict.items()}


def _huggingface_name(name: str) -> str:
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"embedder.embedder.{_KINDS[match[1]]}.{match[2]}"
    match = re.fullmatch(_BLOCK, name)
    assert match, name
    group, block, kind, number, shortcut, leaf = match.groups()
    prefix = f"encoder.stages.{int(group) - 1}.layers.{block}"
    if shortcut:
        return f"{prefix}.shortcut.{_SHORTCUT[shortcut]}.{leaf}"
    return f"{prefix}.layer.{int(number) - 1}.{_KINDS[kind]}.{leaf}"


def _torchvision_name(name: str, file: str) -> str:
    if match := re.fullmatch(r"embedder\.embedder\.(\w+)\.(\w+)", name):
        if match[1] in _KINDS_BACK:
            return f"{_KINDS_BACK[match[1]]}1.{match[2]}"
    elif match := re.fullmatch(_BLOCK_BACK, name):
        stage, block, number, kind, leaf = match.groups()
        prefix = f"layer{int(stage) + 1}.{block}"
        if number is None:
            return f"{prefix}.{_SHORTCUT_BACK[kind]}.{leaf}"
        return f"{prefix}.{_KINDS_BACK[kind]}{int(number) + 1}.{leaf}"
    raise DataError(f"file {file}: {name} is not a name of Hugging Face's ResNetModel")
