"""Folders that torchvision, timm and Hugging Face's transformers open."""

import math
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save

from simclr_jax.models import DEPTHS
from simclr_jax.models.blocks import BASE_FILTERS, EXPANSION
from simclr_jax.models.resnet import NORMALIZATIONS
from simclr_jax.models.simclr import Tree
from simclr_jax.weights import export_folder as folders
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.huggingface import to_huggingface, to_torchvision_names
from simclr_jax.weights.torch_files import read_state_dict
from simclr_jax.weights.torchvision import from_torchvision, to_torchvision

WEIGHTS, PICKLED_WEIGHTS = "model.safetensors", "model.pth"
_CONFIG, _PROCESSOR = "config.json", "preprocessor_config.json"
_PIL_BICUBIC = 3
# PyTorch's default, which none of the three can be told to change.
_EPSILON = 1e-5


def limits(settings: dict[str, Any]) -> list[str]:
    """What about an encoder none of the three can express, as reasons."""
    found = []
    if settings["sk_ratio"] > 0:
        found.append(f"selective kernels (encoder.sk_ratio={settings['sk_ratio']})")
    if settings["se_ratio"] > 0:
        found.append(
            f"squeeze-and-excitation (encoder.se_ratio={settings['se_ratio']})"
        )
    if settings["first_group_projection"] and not DEPTHS[settings["depth"]][0]:
        found.append(
            "a projection shortcut in the first group of basic blocks "
            "(encoder.first_group_projection=True)"
        )
    if settings["stem"] == "imagenet" and settings["max_pool_padding"] != "torch":
        found.append(
            "a max-pool padded as TensorFlow does (encoder.max_pool_padding="
            f"{settings['max_pool_padding']!r})"
        )
    if settings["batch_norm_epsilon"] != _EPSILON:
        found.append(
            f"encoder.batch_norm_epsilon={settings['batch_norm_epsilon']} "
            f"(PyTorch's ResNets have {_EPSILON})"
        )
    return found


def width_limits(settings: dict[str, Any]) -> list[str]:
    """Of torchvision and timm, whose stems have 64 filters."""
    if _filters(settings, 0) == BASE_FILTERS:
        return []
    return [f"encoder.width={settings['width']:g} (their stems have 64 filters)"]


def stem_limits(settings: dict[str, Any]) -> list[str]:
    """Of timm and Hugging Face, whose stems have a stride and a max-pool."""
    if settings["stem"] == "imagenet":
        return []
    return [f"the stem for small images (encoder.stem={settings['stem']!r})"]


def write_torchvision(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes `model.safetensors` with torchvision's names."""
    _save(folder, to_torchvision(pretrained.variables), pretrained.step)


def write_timm(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes `model.safetensors` and `config.json` for timm's 'local-dir:' models."""
    write_torchvision(folder, pretrained)
    size = pretrained.preprocessing.image_size
    mean, std = _moments(pretrained)
    config = {
        "architecture": f"resnet{pretrained.encoder.depth}",
        "num_classes": 0,
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
            "num_classes": 0,
            "pool_size": [math.ceil(size / 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    folders.write_json(folder / _CONFIG, config)


def write_huggingface(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes weights, config and image processor of a `transformers.ResNetModel`."""
    _save(folder, to_huggingface(pretrained.variables), pretrained.step)
    settings = folders.settings_of(pretrained.encoder)
    bottleneck, depths = DEPTHS[settings["depth"]]
    expansion = EXPANSION if bottleneck else 1
    config = {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": _filters(settings, 0),
        "hidden_sizes": [expansion * _filters(settings, group) for group in range(4)],
        "depths": list(depths),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "dtype": "float32",
    }
    folders.write_json(folder / _CONFIG, config)
    size = pretrained.preprocessing.image_size
    short = math.floor(size / pretrained.preprocessing.crop_proportion)
    mean, std = _moments(pretrained)
    processor = {
        # Resizes and crops at any size; the usual one of ResNets squashes large images.
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": short},
        "resample": _PIL_BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": pretrained.encoder.normalization != "none",
        "image_mean": mean,
        "image_std": std,
    }
    folders.write_json(folder / _PROCESSOR, processor)


def read_torch(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables of a folder with torchvision's names.

    Raises:
      DataError: the file cannot be read, or its tensors do not fit.
    """
    file = str(folder / WEIGHTS)
    return _as_variables(read_state_dict(file), settings, file)


def read_huggingface(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables of a folder with Hugging Face's names; raises DataError."""
    file = str(folder / WEIGHTS)
    arrays = to_torchvision_names(read_state_dict(file), file=file)
    return _as_variables(arrays, settings, file)


def _as_variables(
    arrays: dict[str, np.ndarray], settings: dict[str, Any], file: str
) -> Tree:
    weights = from_torchvision(
        arrays, normalization=settings["normalization"], prefix="", file=file
    )
    return weights.variables


def _save(folder: pathlib.Path, arrays: dict[str, np.ndarray], step: int) -> None:
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # PyTorch's BatchNorms count their updates; loading strictly wants the counters.
    for name in arrays:
        if name.endswith(".running_mean"):
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            tensors[counter] = np.array(step, np.int64)
    # `save_file` would let nobody but its writer read the file.
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _moments(pretrained: PretrainedEncoder) -> tuple[list[float], list[float]]:
    """(mean, std) that the library's transform has to take out."""
    moments = NORMALIZATIONS[pretrained.encoder.normalization]
    return (list(moments[0]), list(moments[1])) if moments else ([0.0] * 3, [1.0] * 3)


def _filters(settings: dict[str, Any], group: int) -> int:
    return max(1, round(BASE_FILTERS * settings["width"])) * 2**group
