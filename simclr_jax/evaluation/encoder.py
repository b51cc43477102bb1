"""A pretrained encoder with its preprocessing, read from a run."""

import dataclasses
import hashlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.simclr import Tree
from simclr_jax.training import checkpoints, recipe, run_directory
from simclr_jax.training import step as training_step


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """What `simclr_jax.load` returns.

    Attributes:
      encoder: the Linen module f.
      variables: {'params', 'batch_stats'} of the encoder, float32, replicated.
      preprocessing: what images go through before the encoder.
      config: of the run, as JSON values.
      config_hash: names the config that made these weights.
      step: number of updates that made these weights.
    """

    encoder: ResNet
    variables: Tree
    preprocessing: Preprocessing
    config: dict[str, Any]
    config_hash: str
    step: int

    def encode(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """Turns images into representations.

        Args:
          images: [N, H, W, 3], one image [H, W, 3], or a sequence of images of any
            sizes; NumPy or JAX, uint8 in [0, 255] or floats in [0, 1]. Preprocessing
            is applied.
          batch_size: images on the device at a time.

        Returns:
          h [N, D] float32.
        """
        inputs = self.preprocessing(images)
        parts = []
        for start in range(0, len(inputs), batch_size):
            part = inputs[start : start + batch_size]
            # One compilation: the last batch is filled up.
            filled = np.zeros((min(batch_size, len(inputs)), *part.shape[1:]), "f4")
            filled[: len(part)] = part
            h = encode_prepared(self.encoder, self.variables, filled)
            parts.append(np.asarray(h)[: len(part)])
        return np.concatenate(parts)


def _encode(encoder: ResNet, variables: Tree, images: jax.Array) -> jax.Array:
    return cast(jax.Array, encoder.apply(variables, images, train=False))


_encode_jitted = jax.jit(_encode, static_argnums=0)


def encode_prepared(
    encoder: ResNet, variables: Tree, images: jax.Array | np.ndarray
) -> jax.Array:
    """Representations h [N, D] of prepared images [N, S, S, 3] in [0, 1].

    Uses the running BatchNorm statistics and returns no new ones.
    """
    return _encode_jitted(encoder, variables, images)


def load(workdir: str, *, step: int | None = None) -> PretrainedEncoder:
    """Reads the encoder of a run; see `simclr_jax.load`."""
    folder, step = checkpoints.open_for_reading(workdir, step)
    description = checkpoints.read_description(folder)
    encoder = recipe.make_encoder(description["encoder"])
    preprocessing = Preprocessing(**description["preprocessing"])
    variables = checkpoints.read_encoder(
        folder,
        like=_shapes(encoder, preprocessing.image_size),
        sharding=parallel.replicated(parallel.create_mesh()),
    )
    return PretrainedEncoder(
        encoder=encoder,
        variables=variables,
        preprocessing=preprocessing,
        config=run_directory.read_config(workdir),
        config_hash=description["config_hash"],
        step=step,
    )


def _shapes(encoder: ResNet, image_size: int) -> Tree:
    images = jnp.zeros((1, image_size, image_size, 3))
    return jax.eval_shape(encoder.init, jax.random.key(0), images)


def untrained(pretrained: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder with the weights that its training started from."""
    config = config_dict.ConfigDict(pretrained.config)
    init = training_step.compile_init(
        recipe.make_recipe(config, num_classes=None),
        parallel.create_mesh(),
        image_size=config.image_size,
    )
    state = init(jax.random.key(config.seed))
    variables = {
        "params": state.params["encoder"],
        "batch_stats": state.batch_stats["encoder"],
    }
    return dataclasses.replace(pretrained, variables=variables, step=0)


def checksum(variables: Tree) -> str:
    """SHA-256 over names, shapes and values of all parameters and statistics."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
