"""Checkpoints of google-research/simclr: TF1, TF2 and the released SavedModels.

TF1 names tensors by counters (`base_model/conv2d_17`), one for convolutions and one for
BatchNorms, in call order. TF2 stores an object graph with the tensors. Its paths
(`model/resnet_model/...`) are the same in checkpoints and SavedModels; the keys of the
tensors are not. No code in a file is executed.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from simclr_jax.errors import DataError
from simclr_jax.models import DEPTHS
from simclr_jax.weights.layers import CONV, LEAVES, NORM, Structure, encoder_layers
from simclr_jax.weights.named_tensors import (
    PROBE_LEAVES,
    ImportedWeights,
    Layout,
    Names,
    Tensors,
    assemble,
    nearest,
)
from simclr_jax.weights.tensor_bundles import (
    GRAPH,
    SAVED_MODEL_PREFIX,
    ObjectGraph,
    open_bundle,
)

_GOOGLE_LEAVES = {
    "kernel": "kernel",
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}
# Google's code always uses these, and they do not follow from shapes.
_SETTINGS = {"max_pool_padding": "same", "normalization": "none"}
_PLAIN = [Structure(depth) for depth in DEPTHS]
_SELECTIVE = [
    Structure(depth, selective=True, deep_stem=deep)
    for depth in DEPTHS
    for deep in (True, False)
]
_TWO_HEADS = (
    "the file holds a projection head and a linear classifier: after supervised "
    "training the projection head is untrained, and after fine-tuning the input of the "
    "classifier may be the head's first layer instead of h"
)
_CONVERTED = (
    "resize 'bicubic_legacy' is assumed, since the weights of all released SavedModels "
    "come from TF1; for a SavedModel of a TF2 training pass --resize=bicubic"
)


def load_google_checkpoint(
    path: str,
    *,
    ema: bool = False,
    resize: str | None = None,
    ignore_unexpected: bool = False,
) -> ImportedWeights:
    """Reads a checkpoint of google-research/simclr, v1 or v2.

    Needs TensorFlow.

    Args:
      path: `model.ckpt-N` or `ckpt-N` (or its `.index` file), a folder with one
        checkpoint or with a file `checkpoint`, or a SavedModel's folder; local or
        gs://.
      ema: import the moving averages, which some TF1 files of v2 hold too.
      resize: of evaluation images in training, one of `preprocessing.RESIZES`; by
        default legacy for TF1 files and for SavedModels, since all released ones are
        converted TF1 files.
      ignore_unexpected: leave out tensors without a place, instead of an error.

    Returns:
      The encoder, and the projection head and linear classifier if the file has them.

    Raises:
      DataError: the file cannot be read, or does not fit; names the first misfits.
    """
    tensors, graph = open_bundle(path)
    if graph is None:
        layout = counter_layout(tensors, ema=ema, resize=resize or "bicubic_legacy")
    elif ema:
        raise DataError(
            f"--ema: must be left out for {tensors.file}, a TF2 file; only TF1 files "
            "have moving averages"
        )
    else:
        layout = object_layout(tensors, graph, resize=resize)
    return assemble(tensors, layout, ignore_unexpected=ignore_unexpected)


def _leaf_names(
    layers: Iterable[tuple[str, str]], name: Callable[[str], str]
) -> dict[tuple[str, str], str]:
    """Names of the leaves of (layer, kind), from the names of the layers."""
    return {
        (layer, leaf): f"{name(layer)}/{_GOOGLE_LEAVES[leaf]}"
        for layer, kind in layers
        for leaf in LEAVES[kind]
    }


def _head_names(
    num_layers: int, *, dense: str, norm: str
) -> dict[tuple[str, str], str]:
    """As `_leaf_names`, for a projection head; its last BatchNorm has no offset.

    Args:
      num_layers: of the head.
      dense: name of a dense layer, with `{}` for its number from 0.
      norm: name of a BatchNorm, with `{}` for its number from 0.
    """
    google_names = {}
    for j in range(num_layers):
        google_names[f"dense{j + 1}", CONV] = dense.format(j)
        google_names[f"bn{j + 1}", NORM] = norm.format(j)
    by_layer = {layer: name for (layer, _), name in google_names.items()}
    names = _leaf_names(google_names, by_layer.__getitem__)
    names.pop((f"bn{num_layers}", "bias"), None)
    return names


# TF1: counters.


def counter_layout(tensors: Tensors, *, ema: bool, resize: str) -> Layout:
    """The layout of a TF1 checkpoint.

    Raises:
      DataError: it is not a checkpoint of google-research/simclr.
    """
    root = "ema_model/" if ema else ""
    if not any(name.startswith(f"{root}base_model/") for name in tensors.shapes):
        first = ", ".join(sorted(tensors.shapes)[:3])
        raise DataError(
            f"file {tensors.file}: has no tensor below {root}base_model/, as "
            f"checkpoints of google-research/simclr have; its first ones are {first}"
        )
    # Google's TF1 code cannot build basic blocks with selective kernels.
    candidates = _PLAIN + [s for s in _SELECTIVE if s.bottleneck]
    starts = _first_numbers(tensors.shapes, root)
    structure, names = nearest(
        tensors, candidates, lambda s: _counter_names(s, root, starts)
    )
    head_kind, head_names = "none", {}
    for kind, scope in (("nonlinear", "nl"), ("linear", "l")):
        prefix = f"{root}head_contrastive/{scope}"
        if numbers := _numbers(tensors.shapes, prefix):
            head_kind, head_names = (
                kind,
                _head_names(
                    _num_layers(numbers),
                    dense=prefix + "_{}/dense",
                    norm=prefix + "_{}/batch_normalization",
                ),
            )
    probe = "head_supervised/linear_layer/dense"
    return Layout(
        name="TF1 checkpoint" + (" (moving averages)" if ema else ""),
        structure=structure,
        settings=_SETTINGS,
        encoder=names,
        head_kind=head_kind,
        head=head_names,
        probe={leaf: f"{probe}/{leaf}" for leaf in PROBE_LEAVES},
        resize=resize,
        step="global_step",
        ignorable=lambda name: _ignorable_counter(name, ema),
        notes_on_two_heads=(_TWO_HEADS,),
    )


def _numbers(names: Iterable[str], prefix: str) -> list[int]:
    """The counters that follow a prefix; 0 for a name without a counter."""
    pattern = re.compile(rf"{re.escape(prefix)}(?:_(\d+))?/")
    return [int(m.group(1) or 0) for m in map(pattern.match, names) if m]


def _first_numbers(names: Iterable[str], root: str) -> dict[str, int]:
    """The first values of both counters: above 0 if a program built layers before."""
    first = {
        kind: min(_numbers(names, f"{root}base_model/{prefix}"), default=0)
        for kind, prefix in _COUNTED.items()
    }
    # If only one of them starts above 0, its first tensor is missing.
    return first if all(first.values()) else dict.fromkeys(first, 0)


_COUNTED = {CONV: "conv2d", NORM: "batch_normalization"}


def _num_layers(numbers: list[int]) -> int:
    """Number of layers with these counters; at most two gaps are missing tensors."""
    return min(max(numbers) + 1, len(set(numbers)) + 2)


def _counter_names(structure: Structure, root: str, first: Mapping[str, int]) -> Names:
    layers = list(encoder_layers(structure))
    numbers, counters = {}, dict(first)
    for layer, kind in layers:
        numbers[layer] = f"_{counters[kind]}" if counters[kind] else ""
        counters[kind] += 1
    kinds = dict(layers)
    return _leaf_names(
        layers,
        lambda layer: f"{root}base_model/{_COUNTED[kinds[layer]]}{numbers[layer]}",
    )


def _ignorable_counter(name: str, ema: bool) -> str | None:
    """The kind of a tensor that needs no place in the model; None if it needs one."""
    if re.search(r"/(Momentum|Adam|Adam_1)$", name):
        return "optimizer slots"
    if name == "global_step" or re.fullmatch(r"beta\d_power", name):
        return "bookkeeping"
    if name.startswith("ema_model/"):
        return "moving averages"
    if ema and name.startswith(("base_model/", "head_contrastive/")):
        return "weights that are not averaged"
    return "memory buffer" if name.startswith("memory") else None


# TF2: object paths.

_ROOT = "model/resnet_model"
# In a bottleneck, a DropBlock layer follows each convolution and its BatchNorm; a
# selective kernel is one layer instead of a convolution and a BatchNorm.
_BOTTLENECK = {
    False: {
        "conv1": "0/conv2d",
        "bn1": "1/bn",
        "conv2": "3/conv2d",
        "bn2": "4/bn",
        "conv3": "6/conv2d",
        "bn3": "7/bn",
    },
    True: {
        "conv1": "0/conv2d",
        "bn1": "1/bn",
        "conv2_sk/conv": "3/conv2d_fixed_padding/conv2d",
        "conv2_sk/bn": "3/batch_norm_relu/bn",
        "conv2_sk/fc1": "3/conv2d_0",
        "conv2_sk/fc1_bn": "3/batch_norm_relu_1/bn",
        "conv2_sk/fc2": "3/conv2d_1",
        "conv3": "5/conv2d",
        "bn3": "6/bn",
    },
}
_BASIC = {"conv1": "0/conv2d", "bn1": "1/bn", "conv2": "2/conv2d", "bn2": "3/bn"}
# An identity layer lies between the last convolution of a stem and its BatchNorm.
_STEM = {
    False: {"conv1": "0/conv2d", "bn1": "2/bn"},
    True: {
        "conv1": "0/conv2d",
        "bn1": "1/bn",
        "conv2": "2/conv2d",
        "bn2": "3/bn",
        "conv3": "4/conv2d",
        "bn3": "6/bn",
    },
}


def object_layout(
    tensors: Tensors, graph: ObjectGraph, *, resize: str | None
) -> Layout:
    """The layout of a TF2 checkpoint or SavedModel.

    Raises:
      DataError: it is not one of google-research/simclr.
    """
    if not graph.count(f"{_ROOT}/block_groups"):
        raise DataError(
            f"file {tensors.file}: its object graph has no {_ROOT}, as checkpoints of "
            "google-research/simclr have"
        )
    structure, names = nearest(
        tensors, _PLAIN + _SELECTIVE, lambda s: graph.resolve(_object_names(s))
    )
    head = "model/_projection_head/linear_layers"
    probe = "model/supervised_head/linear_layer/dense"
    num_layers = graph.count(head)
    saved_model = tensors.file.endswith(SAVED_MODEL_PREFIX)
    return Layout(
        name="TF2 SavedModel" if saved_model else "TF2 checkpoint",
        structure=structure,
        settings=_SETTINGS,
        encoder=names,
        head_kind="nonlinear" if num_layers else "none",
        head=graph.resolve(
            _head_names(
                num_layers, dense=head + "/{}/dense", norm=head + "/{}/bn_relu/bn"
            )
        ),
        probe=graph.resolve({leaf: f"{probe}/{leaf}" for leaf in PROBE_LEAVES}),
        resize=resize or ("bicubic_legacy" if saved_model else "bicubic"),
        step=graph.key("global_step") or "",
        ignorable=_ignorable_object,
        notes=(_CONVERTED,) if saved_model and resize is None else (),
    )


def _object_names(structure: Structure) -> Names:
    return _leaf_names(
        encoder_layers(structure), lambda layer: _object_name(layer, structure)
    )


def _object_name(layer: str, structure: Structure) -> str:
    part, _, rest = layer.partition("/")
    if part == "stem":
        index = _STEM[structure.deep_stem][rest]
        return f"{_ROOT}/initial_conv_relu_max_pool/{index}"
    block, _, rest = rest.partition("/")
    group_index, block_index = int(part[-1]) - 1, int(block.removeprefix("block")) - 1
    prefix = f"{_ROOT}/block_groups/{group_index}/layers/{block_index}"
    if rest.startswith("shortcut"):
        name = "projection_layers" if structure.bottleneck else "shortcut_layers"
        # ResNet-D's pool comes first, after a padding if the pool has a stride.
        first = (1 if group_index == 0 else 2) if structure.selective else 0
        index = f"{first}/conv2d" if rest.endswith("conv") else f"{first + 1}/bn"
        return f"{prefix}/{name}/{index}"
    if structure.bottleneck:
        index = _BOTTLENECK[structure.selective][rest]
        return f"{prefix}/conv_relu_dropblock_layers/{index}"
    return f"{prefix}/conv2d_bn_layers/{_BASIC[rest]}"


def _ignorable_object(name: str) -> str | None:
    """As `_ignorable_counter`, for the keys of TF2 files."""
    if ".OPTIMIZER_SLOT" in name:
        return "optimizer slots"
    bookkeeping = ("global_step/", "save_counter/", "optimizer/")
    return "bookkeeping" if name == GRAPH or name.startswith(bookkeeping) else None
