"""torchvision's names for a ResNet, which most PyTorch weights have."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from simclr_jax import models
from simclr_jax.errors import DataError
from simclr_jax.models.simclr import Tree
from simclr_jax.weights.layers import LEAVES, Structure, encoder_layers
from simclr_jax.weights.named_tensors import (
    PROBE_LEAVES,
    ImportedWeights,
    Layout,
    Names,
    assemble,
    nearest,
    place,
)
from simclr_jax.weights.torch_files import as_tensors

_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_BICUBIC = (
    "evaluation images are resized by bicubic interpolation without antialiasing; most "
    "PyTorch code resizes with antialiasing, so that features differ a little"
)
_CLASSIFIER = "the layer fc is assumed to be a linear classifier on h"
_SMALL_STEM = (
    "the 3x3 stem is assumed to have stride 1, padding 1 and no max-pool, which the "
    "file does not record"
)
_LANDMARK = "layer1.0.conv1.weight"
_STRUCTURES = [
    Structure(depth, first_group_projection=projection)
    for depth, (bottleneck, _) in models.DEPTHS.items()
    for projection in ((False,) if bottleneck else (False, True))
]


def from_torchvision(
    state_dict: Mapping[str, Any],
    *,
    normalization: str = "imagenet",
    prefix: str | None = None,
    resize: str | None = None,
    file: str = "state_dict",
    ignore_unexpected: bool = False,
) -> ImportedWeights:
    """Imports the weights of a ResNet with torchvision's names.

    A linear layer `fc` becomes the linear classifier. Other tensors outside the ResNet,
    such as a projection head, are ignored and counted. Variants with the same names and
    shapes (a stride on the 1x1 convolution, blurred pooling, another stem padding)
    cannot be told apart: the network is assumed to be torchvision's.

    Args:
      state_dict: name -> array, with PyTorch's order [out, in, height, width].
      normalization: of pixels in [0, 1], as in `models.create_encoder`; files do not
        record it. 'imagenet' for torchvision's own weights and most others.
      prefix: of the names, such as 'module.encoder_q.'; None finds the only one.
      resize: of evaluation images in training; 'bicubic' if None.
      file: path, for messages.
      ignore_unexpected: leave out tensors without a place, instead of an error.

    Raises:
      DataError: the tensors do not fit; names the first misfits.
    """
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    prefix = _prefix(file, arrays, prefix)
    inside = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    tensors = as_tensors(file, inside)
    structure, names = nearest(
        tensors, _STRUCTURES, lambda s: _encoder_names(s, prefix)
    )
    fc = {leaf: f"{prefix}fc.{_TORCH_LEAVES[leaf]}" for leaf in PROBE_LEAVES}
    linear = {tensors.shapes.get(name, ()) for name in fc.values()}
    is_linear = {len(shape) for shape in linear} == {1, 2}
    layout = Layout(
        name="torchvision-named weights",
        structure=structure,
        settings={"max_pool_padding": "torch", "normalization": normalization},
        encoder=names,
        head_kind="none",
        head={},
        probe=fc if is_linear else dict.fromkeys(PROBE_LEAVES, ""),
        resize=resize or "bicubic",
        step="",
        ignorable=lambda name: _ignorable(name, prefix),
        notes=(_BICUBIC,),
        notes_on_probe=(_CLASSIFIER,),
        notes_on_small_stem=(_SMALL_STEM,),
    )
    result = assemble(tensors, layout, ignore_unexpected=ignore_unexpected)
    if outside := len(arrays) - len(inside):
        result.ignored[f"outside {prefix}"] = outside
    return result


def to_torchvision(variables: Tree) -> dict[str, np.ndarray]:
    """The inverse of `from_torchvision`, for the encoder alone.

    Args:
      variables: {'params', 'batch_stats'} of an encoder.

    Returns:
      torchvision's name -> array, with PyTorch's order.

    Raises:
      ValueError: torchvision has no names for such an encoder.
    """
    flat = {
        place(path): np.asarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(variables)
    }
    matches = [s for s in _STRUCTURES if _encoder_names(s, "").keys() == flat.keys()]
    if not matches:
        raise ValueError(
            "torchvision has no names for this encoder: it must be a ResNet without "
            "selective kernels and squeeze-and-excitation"
        )
    names = _encoder_names(matches[0], "")
    return {
        names[at]: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        for at, array in flat.items()
    }


def _prefix(file: str, names: Mapping[str, Any], prefix: str | None) -> str:
    prefixes = [
        name.removesuffix(_LANDMARK) for name in names if name.endswith(_LANDMARK)
    ]
    if prefix is not None and prefix not in prefixes:
        raise DataError(
            f"--prefix={prefix}: file {file} has no {prefix}{_LANDMARK}; its prefixes "
            f"are {', '.join(map(repr, prefixes)) or 'none'}"
        )
    if prefix is not None:
        return prefix
    if not prefixes:
        raise DataError(
            f"file {file}: has no {_LANDMARK}, so these are not torchvision's names "
            f"for a ResNet; its first tensors are {', '.join(list(names)[:3])}"
        )
    if len(prefixes) > 1:
        raise DataError(
            f"file {file}: holds several ResNets, with the prefixes "
            f"{', '.join(map(repr, prefixes))}; --prefix must name one"
        )
    return prefixes[0]


def _encoder_names(structure: Structure, prefix: str) -> Names:
    return {
        (layer, leaf): f"{prefix}{_layer_name(layer)}.{_TORCH_LEAVES[leaf]}"
        for layer, kind in encoder_layers(structure)
        for leaf in LEAVES[kind]
    }


def _layer_name(layer: str) -> str:
    part, _, rest = layer.partition("/")
    if part == "stem":
        return rest
    block, _, rest = rest.partition("/")
    rest = {"shortcut/conv": "downsample.0", "shortcut/bn": "downsample.1"}.get(
        rest, rest
    )
    return f"layer{part[-1]}.{int(block.removeprefix('block')) - 1}.{rest}"


def _ignorable(name: str, prefix: str) -> str | None:
    """The kind of a tensor that needs no place in the model; None if it needs one."""
    if name.endswith(".num_batches_tracked"):
        return "batch counters"
    # The names of a ResNet's layers directly follow its prefix.
    is_of_resnet = re.match(r"(conv|bn|layer)\d+\.", name.removeprefix(prefix))
    return None if is_of_resnet else "other layers"
