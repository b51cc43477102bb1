"""The formats for JAX: safetensors with this package's names, and StableHLO."""

import json
import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from simclr_jax.errors import DataError, first_line
from simclr_jax.models.resnet import feature_maps, strides
from simclr_jax.models.simclr import Tree
from simclr_jax.weights import classifiers
from simclr_jax.weights.descriptions import FOLDER
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.named_tensors import encoder_shapes

WEIGHTS, PROGRAM = "encoder.safetensors", "encoder.stablehlo"
PYRAMID = "pyramid.stablehlo"
_HEADS = "heads"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Bytes of weights: `jax.export` writes a flatbuffer, which holds less than 2 GiB.
_LARGEST_PROGRAM = 2_000_000_000


def program_limits(settings: dict[str, Any]) -> list[str]:
    """The reasons why a serialised program cannot hold an encoder."""
    leaves = jax.tree.leaves(encoder_shapes(settings))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    if size < _LARGEST_PROGRAM:
        return []
    return [f"{size / 1e9:.1f} GB of weights (a serialised program holds less than 2)"]


def write_safetensors(folder: pathlib.Path, pretrained: PretrainedEncoder) -> str:
    """Writes `encoder.safetensors`: names are paths in `variables`, joined by '/'.

    A classifier, and the layers of the head below it, are under 'heads/', and the names
    of its classes in the file's metadata, as a JSON list.
    """
    tree = {**pretrained.variables, _HEADS: pretrained.heads}
    tensors = {
        _name(path): np.ascontiguousarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    }
    metadata, classify = {"format": "simclr_jax"}, ""
    if pretrained.model.num_classes is not None:
        names = classifiers.names(pretrained)
        metadata["class_names"] = json.dumps(names)
        classify = "\nlogits = encoder.classify(images)\nnames = encoder.class_names"
    (folder / WEIGHTS).write_bytes(save(tensors, metadata=metadata))
    return (
        "import simclr_jax\n\n"
        f'encoder = simclr_jax.load("{FOLDER}")\n'
        "h = encoder.encode(images)  # uint8 [N, H, W, 3]\n"
        "module, variables = encoder.encoder, encoder.variables" + classify
    )


def read_safetensors(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables in `encoder.safetensors`.

    Raises:
      DataError: the file cannot be read, or lacks a tensor.
    """
    return _read_like(folder / WEIGHTS, encoder_shapes(settings))


def read_safetensors_heads(folder: pathlib.Path, like: Tree) -> Tree:
    """The heads in `encoder.safetensors`; `like` has their names.

    Raises:
      DataError: the file cannot be read, or lacks a tensor.
    """
    return cast(Tree, _read_like(folder / WEIGHTS, {_HEADS: like})[_HEADS])


def _read_like(file: pathlib.Path, like: Tree) -> Tree:
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"file {file}: cannot be read ({first_line(error)})") from error

    def take(path: tuple[Any, ...], _: jax.ShapeDtypeStruct) -> np.ndarray:
        if _name(path) not in tensors:
            raise DataError(f"file {file}: {_name(path)} is missing")
        return tensors[_name(path)]

    return cast(Tree, jax.tree_util.tree_map_with_path(take, like))


def write_stablehlo(folder: pathlib.Path, pretrained: PretrainedEncoder) -> str:
    """Writes `encoder.stablehlo`: a function of any number of preprocessed images."""
    encoder, variables = pretrained.encoder, pretrained.variables
    has_classifier = pretrained.model.num_classes is not None
    size = pretrained.preprocessing.image_size

    def encode(images: jax.Array) -> jax.Array | tuple[jax.Array, jax.Array]:
        h = cast(jax.Array, encoder.apply(variables, images, train=False))
        return (h, pretrained.classifier_of_h()(h)) if has_classifier else h

    (count,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)
    # The precision is stored with each operation; accelerators round products by
    # default.
    with jax.default_matmul_precision("highest"):
        program = export.export(jax.jit(encode), platforms=PLATFORMS)(images)
    (folder / PROGRAM).write_bytes(program.serialize())
    outputs = "h, logits" if has_classifier else "h"
    return (
        "import pathlib\nfrom jax import export\n\n"
        f'file = pathlib.Path("{FOLDER}/{PROGRAM}")\n'
        "program = export.deserialize(bytearray(file.read_bytes()))\n"
        f"{outputs} = program.call(images)  # preprocessed"
    )


def write_pyramid(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes `pyramid.stablehlo`: the maps C2 to C5 for detection and segmentation.

    A function of images [N, H, W, 3] float32 in [0, 1], any number, of any height and
    width that the last stride divides, to four maps [N, H/s, W/s, C].
    """
    encoder, variables = pretrained.encoder, pretrained.variables

    def pyramid(images: jax.Array) -> list[jax.Array]:
        return feature_maps(encoder, variables, images)

    last = strides(encoder)[-1]
    shape = export.symbolic_shape(f"n, {last}*h, {last}*w, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    with jax.default_matmul_precision("highest"):
        program = export.export(jax.jit(pyramid), platforms=PLATFORMS)(images)
    (folder / PYRAMID).write_bytes(program.serialize())


def read_program(folder: pathlib.Path, name: str = PROGRAM) -> export.Exported:
    """The program in `encoder.stablehlo`, or in another file.

    Raises:
      DataError: it cannot be read by this version of JAX.
    """
    file = folder / name
    try:
        return export.deserialize(bytearray(file.read_bytes()))
    # The deserialiser has no checks: a damaged file can raise anything.
    except Exception as error:
        raise DataError(f"file {file}: cannot be read ({first_line(error)})") from error


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
