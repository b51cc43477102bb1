"""The formats for JAX: safetensors with this package's names, and StableHLO."""

import pathlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from simclr_jax.errors import DataError, first_line
from simclr_jax.models.simclr import Tree
from simclr_jax.weights.descriptions import FOLDER
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.named_tensors import encoder_shapes

WEIGHTS, PROGRAM = "encoder.safetensors", "encoder.stablehlo"
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
    """Writes `encoder.safetensors`: names are paths in `variables`, joined by '/'."""
    tensors = {
        _name(path): np.ascontiguousarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(pretrained.variables)
    }
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "simclr_jax"}))
    return (
        "import simclr_jax\n\n"
        f'encoder = simclr_jax.load("{FOLDER}")\n'
        "h = encoder.encode(images)  # uint8 [N, H, W, 3]\n"
        "module, variables = encoder.encoder, encoder.variables"
    )


def read_safetensors(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables in `encoder.safetensors`.

    Raises:
      DataError: the file cannot be read, or lacks a tensor.
    """
    file = folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"file {file}: cannot be read ({first_line(error)})") from error

    def take(path: tuple[Any, ...], _: jax.ShapeDtypeStruct) -> np.ndarray:
        if _name(path) not in tensors:
            raise DataError(f"file {file}: {_name(path)} is missing")
        return tensors[_name(path)]

    return jax.tree_util.tree_map_with_path(take, encoder_shapes(settings))


def write_stablehlo(folder: pathlib.Path, pretrained: PretrainedEncoder) -> str:
    """Writes `encoder.stablehlo`: a function of any number of preprocessed images."""
    encoder, variables = pretrained.encoder, pretrained.variables
    size = pretrained.preprocessing.image_size

    def encode(images: jax.Array) -> jax.Array:
        return cast(jax.Array, encoder.apply(variables, images, train=False))

    (count,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)
    # The precision is stored with each operation; accelerators round products by
    # default.
    with jax.default_matmul_precision("highest"):
        program = export.export(jax.jit(encode), platforms=PLATFORMS)(images)
    (folder / PROGRAM).write_bytes(program.serialize())
    return (
        "import pathlib\nfrom jax import export\n\n"
        f'file = pathlib.Path("{FOLDER}/{PROGRAM}")\n'
        "program = export.deserialize(bytearray(file.read_bytes()))\n"
        "h = program.call(images)  # preprocessed"
    )


def read_program(folder: pathlib.Path) -> export.Exported:
    """The program in `encoder.stablehlo`.

    Raises:
      DataError: it cannot be read by this version of JAX.
    """
    file = folder / PROGRAM
    try:
        return export.deserialize(bytearray(file.read_bytes()))
    # The deserialiser has no checks: a damaged file can raise anything.
    except Exception as error:
        raise DataError(f"file {file}: cannot be read ({first_line(error)})") from error


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
