"""Folders for JAX: weights under our own names, an Orbax checkpoint, a program."""

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
from simclr_jax.runs import checkpoints
from simclr_jax.weights.encoder import PretrainedEncoder
from simclr_jax.weights.imported import encoder_shapes

WEIGHTS, PROGRAM, CHECKPOINT = "encoder.safetensors", "encoder.stablehlo", "encoder"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Of the flatbuffer that `jax.export` writes, less what is not weights.
_LARGEST_PROGRAM = 2_000_000_000


def program_limits(settings: dict[str, Any]) -> list[str]:
    """What about an encoder a serialised program cannot hold, as reasons."""
    leaves = jax.tree.leaves(encoder_shapes(arguments(settings)))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    if size < _LARGEST_PROGRAM:
        return []
    return [f"{size / 1e9:.1f} GB of weights (a program's file holds less than 2)"]


def write_safetensors(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes `encoder.safetensors`: names are paths in `variables`, joined by '/'."""
    tensors = {
        _name(path): np.ascontiguousarray(array)
        for path, array in jax.tree_util.tree_leaves_with_path(pretrained.variables)
    }
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "simclr_jax"}))


def read_safetensors(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables in `encoder.safetensors`.

    Raises:
      DataError: it cannot be read, or lacks a tensor.
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

    return jax.tree_util.tree_map_with_path(take, encoder_shapes(arguments(settings)))


def write_orbax(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes {'params', 'batch_stats'} as an Orbax checkpoint in `encoder/`."""
    checkpoints.write_variables(folder / CHECKPOINT, pretrained.variables)


def read_orbax(folder: pathlib.Path, settings: dict[str, Any]) -> Tree:
    """The variables in `encoder/`; raises CheckpointError."""
    # On one device; whoever loads spreads them.
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = encoder_shapes(arguments(settings))
    return checkpoints.read_variables(folder, CHECKPOINT, like, sharding)


def write_stablehlo(folder: pathlib.Path, pretrained: PretrainedEncoder) -> None:
    """Writes `encoder.stablehlo`: a function of any number of prepared images."""
    encoder, variables = pretrained.encoder, pretrained.variables
    size = pretrained.preprocessing.image_size

    def encode(images: jax.Array) -> jax.Array:
        return cast(jax.Array, encoder.apply(variables, images, train=False))

    (count,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)
    # Becomes a part of each operation: accelerators would round products otherwise.
    with jax.default_matmul_precision("highest"):
        program = export.export(jax.jit(encode), platforms=PLATFORMS)(images)
    (folder / PROGRAM).write_bytes(program.serialize())


def read_program(folder: pathlib.Path) -> export.Exported:
    """The program in `encoder.stablehlo`.

    Raises:
      DataError: it cannot be read, or not by this release of JAX.
    """
    file = folder / PROGRAM
    try:
        return export.deserialize(bytearray(file.read_bytes()))
    # The deserialiser checks nothing and raises whatever damage leads to.
    except Exception as error:
        raise DataError(f"file {file}: cannot be read ({first_line(error)})") from error


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an encoder, from JSON, for `models.create_encoder`."""
    return {**settings, "dtype": jnp.dtype(settings["dtype"])}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
