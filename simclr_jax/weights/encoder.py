"""A pretrained encoder with its preprocessing, read from a run."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import identity, resolve, rules
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.models import ProjectionHead, ResNet, SimCLR
from simclr_jax.models.simclr import Tree
from simclr_jax.runs import checkpoints, directory
from simclr_jax.training import build


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """What `simclr_jax.load` returns.

    Attributes:
      model: encoder, projection head and probe, as modules.
      variables: {'params', 'batch_stats'} of the encoder, float32, replicated.
      heads: {'params', 'batch_stats'} of projection head and probe, by part; parts
        without any, and empty collections, are left out.
      preprocessing: what images go through before the encoder.
      config: of the run, as JSON values.
      config_hash: names the config that made these weights.
      step: number of updates that made these weights.
    """

    model: SimCLR
    variables: Tree
    heads: Tree
    preprocessing: Preprocessing
    config: dict[str, Any]
    config_hash: str
    step: int

    @property
    def encoder(self) -> ResNet:
        """The Linen module f."""
        return self.model.encoder

    @property
    def head(self) -> ProjectionHead:
        """The Linen module g; of kind 'none' where there is no projection head."""
        return self.model.head

    def encode(
        self, images: Any, *, layer: int = 0, batch_size: int = 256
    ) -> np.ndarray:
        """Turns images into representations.

        Args:
          images: [N, H, W, 3], one image [H, W, 3], or a sequence of images of any
            sizes; NumPy or JAX, uint8 in [0, 255] or floats in [0, 1]. Preprocessing
            is applied.
          layer: 0 gives h; i the output of layer i of the projection head, as
            SimCLRv2 fine-tunes from; -1 gives z.
          batch_size: images on the device at a time.

        Returns:
          h (or what `layer` says) [N, D] float32.

        Raises:
          ValueError: the head has no such layer, or an image cannot be used.
        """
        encode = self.layer(layer)
        return encode_in_batches(encode, self.preprocessing(images), batch_size)

    def classify(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """Logits [N, classes] float32 of the linear classifier.

        Args:
          images: as for `encode`.
          batch_size: images on the device at a time.

        Raises:
          ValueError: the weights have no classifier, or an image cannot be used.
        """
        classifier = self.classifier()
        return encode_in_batches(classifier, self.preprocessing(images), batch_size)

    def classifier(self) -> jax.tree_util.Partial:
        """The function from prepared images to logits [N, classes]; see `layer`.

        The classifier of a fine-tuned network sits on what is kept of the head, that of
        a pretrained one, the online probe, on h.

        Raises:
          ValueError: the weights have no classifier.
        """
        if self.model.num_classes is None:
            raise ValueError("these weights have no classifier: they give no classes")
        layer = self.layer(-1 if self.model.fine_tuned else 0)
        return jax.tree_util.Partial(_logits, layer, self.heads["params"]["probe"])

    def layer(self, layer: int) -> jax.tree_util.Partial:
        """The function from prepared images [N, S, S, 3] in [0, 1] to a layer.

        Uses the running BatchNorm statistics and returns no new ones. The weights are
        leaves of the result, which is a pytree.

        Args:
          layer: as for `encode`.

        Raises:
          ValueError: the head has no such layer.
        """
        num_layers = self.head.num_outputs
        if not -num_layers <= layer < num_layers:
            raise ValueError(
                f"layer={layer}: must be between 0 (h) and {num_layers - 1}, or -1, "
                f"for a projection head of {num_layers - 1} layers"
            )
        head = {
            name: parts["head"] for name, parts in self.heads.items() if "head" in parts
        }
        encode = functools.partial(_encode, self.model, layer)
        return jax.tree_util.Partial(encode, self.variables, head)


def encode_in_batches(
    encode: Callable[[jax.Array], jax.Array], inputs: np.ndarray, batch_size: int
) -> np.ndarray:
    """What `encode` makes of prepared images [N, S, S, 3], so many at a time."""
    parts = []
    for start in range(0, len(inputs), batch_size):
        part = inputs[start : start + batch_size]
        # One compilation: the last batch is filled up.
        filled = np.zeros((min(batch_size, len(inputs)), *part.shape[1:]), "f4")
        filled[: len(part)] = part
        parts.append(np.asarray(encode(jnp.asarray(filled)))[: len(part)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    model: SimCLR, layer: int, variables: Tree, head: Tree, images: jax.Array
) -> jax.Array:
    h = model.encoder.apply(variables, images, train=False)
    if layer == 0:
        return cast(jax.Array, h)
    outputs = model.head.apply(head, h, train=False, method="layers")
    return cast(list[jax.Array], outputs)[layer].astype(jnp.float32)


@jax.jit
def _logits(
    layer: jax.tree_util.Partial, classifier: Tree, images: jax.Array
) -> jax.Array:
    logits = jnp.matmul(
        layer(images), classifier["kernel"], precision=jax.lax.Precision.HIGHEST
    )
    return logits + classifier["bias"]


def load(workdir: str, *, step: int | None = None) -> PretrainedEncoder:
    """Reads the encoder of a run; see `simclr_jax.load`."""
    folder, step = checkpoints.open_for_reading(workdir, step)
    description = checkpoints.read_description(folder)
    model = SimCLR(
        encoder=build.make_encoder(description["encoder"]),
        head=build.make_head(description["head"]),
        num_classes=description["num_classes"],
        fine_tuned=description.get("fine_tuned", False),
    )
    preprocessing = Preprocessing(**description["preprocessing"])
    size = preprocessing.image_size
    params, batch_stats = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
    )
    like = checkpoints.separate_encoder({"params": params, "batch_stats": batch_stats})
    sharding = parallel.replicated(parallel.create_mesh())
    variables, heads = (
        checkpoints.read_variables(folder, item, shapes, sharding) if shapes else {}
        for item, shapes in zip(("encoder", "heads"), like, strict=True)
    )
    return PretrainedEncoder(
        model=model,
        variables=variables,
        heads=heads,
        preprocessing=preprocessing,
        config=directory.read_config(workdir),
        config_hash=description["config_hash"],
        step=step,
    )


def untrained(pretrained: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder and head with the weights that a training starts from."""
    config = config_dict.ConfigDict(pretrained.config)
    model = dataclasses.replace(pretrained.model, num_classes=None, fine_tuned=False)
    variables, heads = _draw(model, config)
    return dataclasses.replace(
        pretrained, model=model, variables=variables, heads=heads, step=0
    )


def drawn(config: config_dict.ConfigDict) -> PretrainedEncoder:
    """The encoder and head of a config with the weights that its training starts from.

    Raises:
      ConfigError: the config has a value that breaks a rule.
    """
    rules.validate(config)
    config = resolve.resolve(config, num_examples=config.batch.batch_size)
    model = build.make_model(config, num_classes=None)
    variables, heads = _draw(model, config)
    description = build.describe(config, model)
    return PretrainedEncoder(
        model=model,
        variables=variables,
        heads=heads,
        preprocessing=Preprocessing(**description["preprocessing"]),
        config=identity.as_json(config),
        config_hash=description["config_hash"],
        step=0,
    )


def _draw(model: SimCLR, config: config_dict.ConfigDict) -> tuple[Tree, Tree]:
    shape = (1, config.image_size, config.image_size, 3)
    init = jax.jit(
        model.init, out_shardings=parallel.replicated(parallel.create_mesh())
    )
    params, batch_stats = init(jax.random.key(config.seed), jnp.zeros(shape))
    return checkpoints.separate_encoder({"params": params, "batch_stats": batch_stats})


def checksum(variables: Tree) -> str:
    """SHA-256 over names, shapes and values of all parameters and statistics."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
