"""The classifier of a network that was fine-tuned or distilled, in exports.

Where it takes a middle layer of the projection head (SimCLRv2), the layers below it go
with it: the formats of this package and StableHLO can hold them, the others have room
for one linear layer on h.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.errors import ConfigError, DataError
from simclr_jax.models import SimCLR, create_projection_head
from simclr_jax.models.simclr import Tree
from simclr_jax.training import build
from simclr_jax.weights import encoder as encoders
from simclr_jax.weights.encoder import PretrainedEncoder

NAMES = "class_names.json"
# The formats that hold layers of the projection head below a classifier.
ANY_LAYER = ("safetensors", "stablehlo")
_HEAD = ("kind", "num_layers", "hidden_dim", "output_dim", "kept_layers")
_BATCH_NORM = ("batch_norm_momentum", "batch_norm_epsilon")


def for_export(
    pretrained: PretrainedEncoder, wanted: bool | None, *, name: str
) -> PretrainedEncoder:
    """The part of a network that an export has, computed in float32.

    Args:
      pretrained: of a run.
      wanted: whether to keep the classifier; None keeps that of a fine-tuned or
        distilled network, and leaves the probe of a pretrained one behind.
      name: of the format.

    Raises:
      ConfigError: there is no classifier to keep, or the format cannot hold it.
    """
    model = pretrained.model
    if wanted and model.num_classes is None:
        raise ConfigError(
            "--classifier: the run has no classifier; fine-tune it first with "
            "`python -m simclr_jax.finetune`"
        )
    original = encoders.without_heads(pretrained)
    keeps = model.fine_tuned if wanted is None else wanted
    if not keeps or model.num_classes is None:
        return dataclasses.replace(original, class_names=None)
    num_layers = model.head.num_outputs - 1 if model.fine_tuned else 0
    if num_layers and name not in ANY_LAYER:
        raise ConfigError(
            f"--format={name}: cannot hold this classifier, which takes the output of "
            f"layer {num_layers} of the projection head (config.finetune.layer) and "
            f"not h; formats that can: {', '.join(ANY_LAYER)}; --noclassifier writes "
            "the encoder alone"
        )
    parts = ("head", "probe") if num_layers else ("probe",)
    heads = {
        kind: {part: tree[part] for part in parts if part in tree}
        for kind, tree in pretrained.heads.items()
    }
    none = create_projection_head(kind="none")
    head = model.head.clone(dtype=jnp.float32) if num_layers else none
    return dataclasses.replace(
        original,
        model=SimCLR(original.encoder, head, model.num_classes, fine_tuned=True),
        heads={
            kind: jax.tree.map(np.asarray, tree) for kind, tree in heads.items() if tree
        },
    )


def names(pretrained: PretrainedEncoder) -> list[str]:
    """The names of the classes in the order of the logits; empty without a classifier.

    Classes of a run that recorded no names are called 'class_0', 'class_1', ...
    """
    if pretrained.class_names is not None:
        return list(pretrained.class_names)
    return [f"class_{i}" for i in range(pretrained.model.num_classes or 0)]


def linear(pretrained: PretrainedEncoder) -> tuple[np.ndarray, np.ndarray]:
    """(weight [classes, D], bias [classes]) in PyTorch's order."""
    probe = pretrained.heads["params"]["probe"]
    return np.asarray(probe["kernel"]).T, np.asarray(probe["bias"])


def describe(pretrained: PretrainedEncoder) -> dict[str, Any] | None:
    """The classifier in `encoder.json`; None without one."""
    model = pretrained.model
    if model.num_classes is None:
        return None
    head = {name: getattr(model.head, name) for name in (*_HEAD, *_BATCH_NORM)}
    return {
        "num_classes": model.num_classes,
        "class_names": names(pretrained),
        "names_recorded": pretrained.class_names is not None,
        "takes_layer": model.head.num_outputs - 1,
        "head": {**head, "dtype": "float32"},
    }


def write_names(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes `class_names.json`, a list in the order of the logits, if there is one."""
    if pretrained.model.num_classes is not None:
        text = json.dumps(names(pretrained), indent=1) + "\n"
        (folder / NAMES).write_text(text, encoding="utf-8")


def described(
    encoder: Any, description: dict[str, Any] | None
) -> tuple[SimCLR, tuple[str, ...] | None]:
    """(the modules, the names of the classes), the inverse of `describe`.

    Raises:
      TypeError, ValueError, KeyError: the description is damaged.
    """
    if description is None:
        return SimCLR(encoder, create_projection_head(kind="none")), None
    count, found = description["num_classes"], description["class_names"]
    if not isinstance(found, list) or len(found) != count:
        raise ValueError(f"class_names must be a list of {count} names")
    head = build.make_head(description["head"])
    return SimCLR(encoder, head, count, fine_tuned=True), tuple(map(str, found))


def shapes(model: SimCLR) -> Tree:
    """Shapes of projection head and classifier, by collection and part."""
    params, batch_stats = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )
    trees = {"params": params, "batch_stats": batch_stats}
    heads = {
        kind: {part: leaf for part, leaf in tree.items() if part != "encoder"}
        for kind, tree in trees.items()
    }
    return {kind: tree for kind, tree in heads.items() if tree}


def from_linear(
    arrays: dict[str, np.ndarray], *, weight: str, bias: str, file: str
) -> Tree:
    """The heads of a classifier from PyTorch's linear layer.

    Raises:
      DataError: a tensor is missing.
    """
    for name in (weight, bias):
        if name not in arrays:
            raise DataError(f"file {file}: {name} is missing")
    kernel = np.ascontiguousarray(np.asarray(arrays[weight]).T)
    return {"params": {"probe": {"kernel": kernel, "bias": arrays[bias]}}}
