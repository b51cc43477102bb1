"""What `simclr_jax.load` returns: a pretrained encoder with its preprocessing."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from simclr_jax import parallel
from simclr_jax.config import identity, resolve, rules
from simclr_jax.data.preprocessing import NO_IMAGE, Preprocessing
from simclr_jax.errors import ConfigError
from simclr_jax.models import (
    ProjectionHead,
    ResNet,
    SimCLR,
    create_projection_head,
    normalization,
)
from simclr_jax.models.simclr import Tree
from simclr_jax.runs import checkpoints, damage, dataset_record, directory
from simclr_jax.training import build
from simclr_jax.weights.given_images import GivenImages

# How an encoder is computed; weights do not depend on it.
_EXECUTION = {
    *("remat", "gradient_dtype", "frozen_through", "frozen_batch_norm"),
    *("batch_norm_groups", "pointwise_norm", "parent", "name"),
}


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """An encoder with its weights, preprocessing and config.

    Attributes:
      model: the modules of encoder, projection head and probe.
      variables: {'params', 'batch_stats'} of the encoder, float32, replicated.
      heads: {'params', 'batch_stats'} of projection head and probe, by part; parts
        without variables and empty collections are left out.
      preprocessing: applied to images before the encoder.
      config: of the run, as JSON values.
      config_hash: hash of the config of the run.
      step: number of updates.
      class_names: of the classifier; None where the run recorded none.
    """

    model: SimCLR
    variables: Tree
    heads: Tree
    preprocessing: Preprocessing
    config: dict[str, Any]
    config_hash: str
    step: int
    class_names: tuple[str, ...] | None = None

    @property
    def encoder(self) -> ResNet:
        """The Linen module f."""
        return self.model.encoder

    @property
    def head(self) -> ProjectionHead:
        """The Linen module g; of kind 'none' if there is no projection head."""
        return self.model.head

    def encode(
        self, images: Any, *, layer: int = 0, batch_size: int = 256
    ) -> np.ndarray:
        """Turns images into representations.

        Args:
          images: [N, H, W, 3], one image [H, W, 3], or a list of images of any sizes;
            NumPy or JAX, uint8 in [0, 255], floats in [0, 1], or of more bits in
            [0, preprocessing.white_level]. Grey images need no channel: [N, H, W],
            [H, W]. Images of Pillow and paths of image files, one or a list, are read
            as training reads them; see `given_images`. Preprocessing is applied, batch
            by batch.
          layer: 0 for h, i for the output of layer i of the projection head (SimCLRv2
            fine-tunes from a middle layer), -1 for z.
          batch_size: number of images on the devices at a time, split over those of
            this process.

        Returns:
          h [N, D] float32, or the output of another `layer`.

        Raises:
          ValueError: the head has no such layer, or an image cannot be read, or has a
            wrong shape, type or range; the message has its number in a list.
        """
        return self._in_batches(self.layer(layer), images, batch_size)

    def classify(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """Logits [N, classes] float32 of the linear classifier.

        Args:
          images: as for `encode`.
          batch_size: number of images on the devices at a time, split over those of
            this process.

        Raises:
          ValueError: the weights have no classifier, or an image has a wrong shape,
            type or range.
        """
        return self._in_batches(self.classifier(), images, batch_size)

    def _in_batches(
        self, function: jax.tree_util.Partial, images: Any, batch_size: int
    ) -> np.ndarray:
        """Applies a function of prepared images on all devices of this process."""
        mesh = parallel.create_mesh(jax.local_devices())
        function = _on_devices(function, mesh)
        put = functools.partial(jax.device_put, device=parallel.batch_sharding(mesh))
        return encode_in_batches(
            lambda batch: function(put(batch)),
            self.preprocessing,
            images,
            batch_size=batch_size,
            num_devices=mesh.size,
        )

    def classifier(self) -> jax.tree_util.Partial:
        """The function from preprocessed images to logits [N, classes]; see `layer`.

        The classifier of a fine-tuned network takes the output of the layers of the
        head that it kept; the online probe of a pretrained network takes h.

        Raises:
          ValueError: the weights have no classifier.
        """
        if self.model.num_classes is None:
            raise ValueError("these weights have no classifier")
        layer = self.layer(self.classifier_layer)
        return jax.tree_util.Partial(_logits, layer, self.heads["params"]["probe"])

    def classifier_of_h(self) -> jax.tree_util.Partial:
        """The function from h [N, D] to logits [N, classes]; see `classifier`."""
        if self.model.num_classes is None:
            raise ValueError("these weights have no classifier")
        layer = self.layer_of_h(self.classifier_layer)
        return jax.tree_util.Partial(_logits, layer, self.heads["params"]["probe"])

    @property
    def classifier_layer(self) -> int:
        """The layer that the classifier takes."""
        return -1 if self.model.fine_tuned else 0

    def layer(self, layer: int) -> jax.tree_util.Partial:
        """The function from preprocessed images [N, S, S, 3] in [0, 1] to a layer.

        It uses the running BatchNorm statistics. It is a pytree whose leaves are the
        weights.

        Args:
          layer: as for `encode`.

        Raises:
          ValueError: the head has no such layer.
        """
        head = self._head(layer)
        encode = _function_of(_encode, self.model, int(layer))
        return jax.tree_util.Partial(encode, self.variables, head)

    def layer_of_h(self, layer: int) -> jax.tree_util.Partial:
        """The function from h [N, D] to a layer; its leaves are the head's weights.

        Args:
          layer: as for `encode`.

        Raises:
          ValueError: the head has no such layer.
        """
        head = self._head(layer)
        return jax.tree_util.Partial(
            _function_of(_apply_head, self.model, int(layer)), head
        )

    def _head(self, layer: int) -> Tree:
        """The variables of the projection head, if it has such a layer."""
        num_layers = self.head.num_outputs
        if not isinstance(layer, int | np.integer) or isinstance(layer, bool):
            raise ValueError(f"layer={layer!r}: must be a whole number")
        if not -num_layers <= layer < num_layers:
            raise ValueError(
                f"layer={layer}: must be between 0 (h) and {num_layers - 1}, or -1, "
                f"for a projection head of {num_layers - 1} layers"
            )
        return {
            name: parts["head"] for name, parts in self.heads.items() if "head" in parts
        }


def encode_in_batches(
    encode: Callable[[np.ndarray], jax.Array],
    preprocessing: Preprocessing,
    images: Any,
    *,
    batch_size: int,
    num_devices: int = 1,
) -> np.ndarray:
    """Prepares and encodes images batch by batch.

    Args:
      encode: prepared images [B, S, S, 3] -> [B, D].
      preprocessing: of the images.
      images: as for `PretrainedEncoder.encode`.
      batch_size: B is this, or the number of images if that is smaller, rounded up to
        a multiple of `num_devices`.
      num_devices: that `encode` splits a batch over.

    Returns:
      [N, D].
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(
            f"batch_size={batch_size!r}: must be a whole number of at least 1"
        )
    images = GivenImages(images)
    if not len(images):
        raise ValueError(NO_IMAGE)
    size = -(-min(batch_size, len(images)) // num_devices) * num_devices
    outputs, previous = np.empty(0), None
    for start in range(0, len(images), size):
        stop = min(start + size, len(images))
        prepared = images.prepare(preprocessing, start, stop)
        # The last batch is filled up, so that there is one compilation.
        batch = np.zeros((size, *prepared.shape[1:]), np.float32)
        batch[: len(prepared)] = prepared
        # While it is encoded, the next batch is prepared.
        encoded = encode(batch)
        if previous is None:
            outputs = np.empty((len(images), *encoded.shape[1:]), encoded.dtype)
        else:
            outputs[start - size : start] = previous
        previous = encoded
    done = (len(images) - 1) // size * size
    outputs[done:] = np.asarray(previous)[: len(images) - done]
    return outputs


def _on_devices(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, whole on every device of a mesh of this process."""
    sharding = parallel.replicated(mesh)

    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
            held = {shard.device: shard.data for shard in leaf.addressable_shards}
            if held.keys() >= {*mesh.devices.flat}:
                copies = [held[device] for device in mesh.devices.flat]
                return jax.make_array_from_single_device_arrays(
                    leaf.shape, sharding, copies
                )
        return jax.device_put(np.asarray(leaf), sharding)

    return jax.tree.map(one, tree)


@functools.lru_cache(maxsize=32)
def _function_of(
    function: Callable[..., jax.Array], model: SimCLR, layer: int
) -> Callable[..., jax.Array]:
    """The same object for equal models: programs are compiled once for all of them."""
    return functools.partial(function, model, layer)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    model: SimCLR, layer: int, variables: Tree, head: Tree, images: jax.Array
) -> jax.Array:
    h = model.encoder.apply(variables, images, train=False)
    return _apply_head(model, layer, head, cast(jax.Array, h))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_head(model: SimCLR, layer: int, head: Tree, h: jax.Array) -> jax.Array:
    if layer == 0:
        return h
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


def _described(description: dict[str, Any]) -> tuple[SimCLR, Preprocessing]:
    model = SimCLR(
        encoder=build.make_encoder(description["encoder"]),
        head=build.make_head(description["head"]),
        num_classes=description["num_classes"],
        fine_tuned=description.get("fine_tuned", False),
    )
    return model, Preprocessing(**description["preprocessing"])


def load(
    workdir: str,
    *,
    step: int | None = None,
    folder_name: str | None = None,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> PretrainedEncoder:
    """Reads the encoder of a run; see `simclr_jax.load`.

    Args:
      workdir: the run directory.
      step: the checkpoint; the newest if None.
      folder_name: as in `checkpoints.open_for_reading`.
      check: called with the encoder's settings before the weights are read.
    """
    folder, step = checkpoints.open_for_reading(workdir, step, folder_name)
    description = checkpoints.read_description(folder)
    model, preprocessing = damage.read(
        folder, "description", lambda: _described(description)
    )
    if check is not None:
        check(description["encoder"])
    size = preprocessing.image_size
    params, batch_stats = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
    )
    like = checkpoints.separate_encoder({"params": params, "batch_stats": batch_stats})
    sharding = parallel.replicated(parallel.create_mesh())
    variables, heads = (
        checkpoints.read_variables(
            folder, item, shapes, sharding, description.get("checksums", {})
        )
        if shapes
        else {}
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
        class_names=_class_names(workdir, model),
    )


def _class_names(workdir: str, model: SimCLR) -> tuple[str, ...] | None:
    if model.num_classes is None:
        return None
    names = dataset_record.class_names(workdir)
    # A damaged or foreign record must not name classes wrongly.
    return tuple(names) if names and len(names) == model.num_classes else None


def untrained(pretrained: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder and head with the initial weights of their run."""
    config = config_dict.ConfigDict(pretrained.config)
    model = dataclasses.replace(pretrained.model, num_classes=None, fine_tuned=False)
    variables, heads = _init(model, config)
    return dataclasses.replace(
        pretrained,
        model=model,
        variables=variables,
        heads=heads,
        step=0,
        class_names=None,
    )


def initialize(config: config_dict.ConfigDict) -> PretrainedEncoder:
    """The encoder and head of a config with initial weights.

    Raises:
      ConfigError: the config has a value that breaks a rule.
    """
    rules.validate(config)
    if config.encoder.normalization == normalization.MEASURED:
        raise ConfigError(
            "config.encoder.normalization='dataset': is measured where pretraining "
            "starts, and nothing is read here; give the numbers, as MEAN/STD"
        )
    config = config.copy_and_resolve_references()
    # No images are known here, and so no steps; initial weights do not depend on them.
    config.schedule.train_steps, config.schedule.warmup_steps = 1, 0
    config = resolve.resolve(config, num_examples=config.batch.batch_size)
    model = build.make_model(config, num_classes=None)
    variables, heads = _init(model, config)
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


def _init(model: SimCLR, config: config_dict.ConfigDict) -> tuple[Tree, Tree]:
    shape = (1, config.image_size, config.image_size, 3)
    init = jax.jit(
        model.init, out_shardings=parallel.replicated(parallel.create_mesh())
    )
    params, batch_stats = init(jax.random.key(config.seed), jnp.zeros(shape))
    return checkpoints.separate_encoder({"params": params, "batch_stats": batch_stats})


def settings_of(encoder: ResNet) -> dict[str, Any]:
    """The inverse of `build.make_encoder`: settings as JSON values, in float32."""
    names = {field.name for field in dataclasses.fields(encoder)} - _EXECUTION
    settings = {name: getattr(encoder, name) for name in sorted(names)}
    return {**settings, "dtype": "float32"}


def without_heads(pretrained: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder without projection head and classifier, computed in float32."""
    encoder = build.make_encoder(settings_of(pretrained.encoder))
    return dataclasses.replace(
        pretrained,
        model=SimCLR(encoder, create_projection_head(kind="none")),
        variables=jax.tree.map(np.asarray, pretrained.variables),
        heads={},
    )


def checksum(variables: Tree) -> str:
    """SHA-256 over names, shapes and values of all parameters and statistics."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
