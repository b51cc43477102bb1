"""torchvision's names for a ResNet, which most PyTorch weights have, and others'."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from simclr_jax.models.simclr import Tree
from simclr_jax.weights.layers import LEAVES, NORM, Structure, encoder_layers
from simclr_jax.weights.named_tensors import (
    PROBE_LEAVES,
    ImportedWeights,
    Layout,
    Names,
    assemble,
    nearest,
    place,
)
from simclr_jax.weights.torch_files import Contents, as_tensors
from simclr_jax.weights.torch_layouts import PLAIN, Naming, choose, torchvision_layer

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
_CLASSIFIER = "the layer {} is assumed to be a linear classifier on h"
_SMALL_STEM = (
    "the 3x3 stem is assumed to have stride 1, padding 1 and no max-pool, which the "
    "file does not record"
)
_GOOGLE_PADDING = (
    "the max-pool is TensorFlow's, as where these weights come from; the PyTorch code "
    "that they were written by pads both sides"
)


def from_torchvision(
    state_dict: Mapping[str, Any],
    *,
    normalization: str = "imagenet",
    prefix: str | None = None,
    resize: str | None = None,
    file: str = "state_dict",
    ignore_unexpected: bool = False,
) -> ImportedWeights:
    """Imports the weights of a ResNet with torchvision's names, or others'.

    The names may be those of torchvision, of a `nn.Sequential` of a ResNet's children
    (lightly), of Hugging Face or of SimCLRv2 in PyTorch, which has a projection head
    too; see `torch_layouts`. A linear layer `fc` becomes the linear classifier. Other
    tensors outside the ResNet, such as a projection head, are ignored and counted.
    Variants with the same names and shapes (a stride on the 1x1 convolution, blurred
    pooling, another stem padding) cannot be told apart: the network is assumed to be
    torchvision's.

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
    contents = Contents(tuple(arrays), {"": arrays})
    _, naming = choose(file, contents, key=None, prefix=prefix)
    return from_naming(
        arrays,
        naming,
        normalization=normalization,
        resize=resize,
        file=file,
        ignore_unexpected=ignore_unexpected,
    )


def from_naming(
    arrays: Mapping[str, np.ndarray],
    naming: Naming,
    *,
    normalization: str,
    resize: str | None,
    file: str,
    ignore_unexpected: bool,
) -> ImportedWeights:
    """As `from_torchvision`, for arrays whose naming was found."""
    prefix = naming.prefix
    outer = tuple(filter(None, (prefix, f"{naming.classifier}.", naming.head)))
    inside = {
        name: array
        for name, array in arrays.items()
        if not prefix or name.startswith(outer)
    }
    tensors = as_tensors(file, inside)
    structure, names = nearest(
        tensors, naming.structures, lambda s: _encoder_names(s, naming)
    )
    fc = {leaf: f"{naming.classifier}.{_TORCH_LEAVES[leaf]}" for leaf in PROBE_LEAVES}
    linear = {tensors.shapes.get(name, ()) for name in fc.values()}
    is_linear = {len(shape) for shape in linear} == {1, 2}
    head, is_offset = _head_names(inside, naming)
    notes = (_BICUBIC, _GOOGLE_PADDING) if naming.head else (_BICUBIC,)
    layout = Layout(
        name=naming.title,
        structure=structure,
        settings={
            "max_pool_padding": "same" if naming.head else "torch",
            "normalization": normalization,
        },
        encoder=names,
        head_kind="nonlinear" if head else "none",
        head=head,
        probe=fc if is_linear else dict.fromkeys(PROBE_LEAVES, ""),
        resize=resize or "bicubic",
        step="",
        ignorable=lambda name: (
            "zero offsets" if is_offset(name) else _ignorable(name, naming)
        ),
        notes=notes,
        notes_on_probe=(_CLASSIFIER.format(naming.classifier),),
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
    matches = [s for s in PLAIN if _encoder_names(s).keys() == flat.keys()]
    if not matches:
        raise ValueError(
            "torchvision has no names for this encoder: it must be a ResNet without "
            "selective kernels and squeeze-and-excitation"
        )
    names = _encoder_names(matches[0])
    return {
        names[at]: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        for at, array in flat.items()
    }


def _encoder_names(structure: Structure, naming: Naming | None = None) -> Names:
    """Names after a naming; torchvision's without a prefix if there is none."""
    prefix = naming.prefix if naming else ""
    layer_name = naming.layer if naming else torchvision_layer
    return {
        (layer, leaf): f"{prefix}{layer_name(layer, structure)}.{_TORCH_LEAVES[leaf]}"
        for layer, kind in encoder_layers(structure)
        for leaf in LEAVES[kind]
    }


def _head_names(
    arrays: Mapping[str, np.ndarray], naming: Naming
) -> tuple[Names, Callable[[str], bool]]:
    """(names of the head's tensors, whether a name is of its last offset, zeros).

    The head is a list of dense layers, BatchNorms and ReLUs.
    """
    names: dict[tuple[str, str], str] = {}
    last = ""
    while naming.head:
        layer = sum(leaf == "kernel" for _, leaf in names)
        dense, norm = (f"{naming.head}{3 * layer + i}" for i in range(2))
        if f"{dense}.weight" not in arrays:
            break
        names[f"dense{layer + 1}", "kernel"] = f"{dense}.weight"
        for leaf in LEAVES[NORM]:
            names[f"bn{layer + 1}", leaf] = f"{norm}.{_TORCH_LEAVES[leaf]}"
        last = names[f"bn{layer + 1}", "bias"]
    # Ours has none.
    names = {at: name for at, name in names.items() if name != last}
    return names, lambda name: name == last and not arrays[name].any()


def _ignorable(name: str, naming: Naming) -> str | None:
    """The kind of a tensor that needs no place in the model; None if it needs one."""
    if name.endswith(".num_batches_tracked"):
        return "batch counters"
    if naming.head and name.startswith(naming.head):
        return None
    # The names of a ResNet's layers directly follow its prefix.
    after = name.removeprefix(naming.prefix)
    is_of_resnet = re.match(naming.own, after)
    return None if is_of_resnet else "other layers"
