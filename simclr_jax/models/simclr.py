"""Encoder, projection head and online probe as one function on plain dicts."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet

# A nested dict of arrays.
Tree = dict[str, Any]


class Outputs(NamedTuple):
    """Outputs of the model for N images."""

    h: jax.Array  # [N, D] float32, the representation
    z: jax.Array  # [N, K] float32, the projection, not normalised
    logits: jax.Array | None  # [N, classes] float32, None without a classifier


class _Network(nn.Module):
    encoder: ResNet
    head: ProjectionHead
    num_classes: int | None
    fine_tuned: bool

    def setup(self) -> None:
        if self.num_classes is not None:
            init = nn.initializers
            self.probe = nn.Dense(
                self.num_classes,
                kernel_init=init.zeros if self.fine_tuned else init.normal(0.01),
            )

    def __call__(self, images: jax.Array, train: bool) -> Outputs:
        h = self.encoder(images, train)
        z = self.head(h, train)
        if self.num_classes is None:
            return Outputs(h, z, None)
        # A probe measures the representation and must not change it.
        features = (
            z.astype(jnp.float32) if self.fine_tuned else jax.lax.stop_gradient(h)
        )
        return Outputs(h, z, self.probe(features))


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """Encoder f, head g and an optional linear classifier.

    In pretraining the classifier is a probe: its input is h, and it passes no gradient.
    In fine-tuning its input is the output of the kept layers of the head (h itself if
    there are none), and its gradient trains them and the encoder.

    Parameters are {'encoder': ..., 'head': ..., 'probe': ...} and BatchNorm statistics
    {'encoder': ..., 'head': ...}; a part without parameters or statistics is absent.
    Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      encoder: from `create_encoder`.
      head: from `create_projection_head`.
      num_classes: of the classifier; None for no classifier.
      fine_tuned: the classifier trains the encoder instead of being a probe.
    """

    encoder: ResNet
    head: ProjectionHead
    num_classes: int | None = None
    fine_tuned: bool = False

    def _network(self) -> _Network:
        return _Network(
            self.encoder.copy(), self.head.copy(), self.num_classes, self.fine_tuned
        )

    def init(self, key: jax.Array, images: jax.Array) -> tuple[Tree, Tree]:
        """Draws (params, batch_stats) for images shaped [N, H, W, 3]."""
        variables = self._network().init(key, images, train=False)
        return dict(variables["params"]), dict(variables.get("batch_stats", {}))

    def apply(
        self, params: Tree, batch_stats: Tree, images: jax.Array, *, train: bool
    ) -> tuple[Outputs, Tree]:
        """Computes the outputs of all parts.

        Args:
          params: from `init`.
          batch_stats: from `init`, or from the previous call.
          images: [N, H, W, 3] floats in [0, 1].
          train: normalise with the statistics of these N images and update the
            running ones; otherwise use the running ones.

        Returns:
          (outputs, batch_stats); the statistics are unchanged unless `train`.
        """
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            outputs = self._network().apply(variables, images, train=False)
            return cast(Outputs, outputs), batch_stats
        outputs, updates = self._network().apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        return cast(Outputs, outputs), dict(updates["batch_stats"])
