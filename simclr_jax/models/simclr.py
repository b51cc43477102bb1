"""Encoder, projection head and online probe as one function on plain dicts."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
from flax import linen as nn

from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet

# A nested dict of arrays.
Tree = dict[str, Any]


class Outputs(NamedTuple):
    """What the model makes of N images."""

    h: jax.Array  # [N, D] float32, the representation
    z: jax.Array  # [N, K] float32, the projection, not normalised
    logits: jax.Array | None  # [N, classes] float32, the probe's; None without one


class _Network(nn.Module):
    encoder: ResNet
    head: ProjectionHead
    num_classes: int | None

    def setup(self) -> None:
        if self.num_classes is not None:
            self.probe = nn.Dense(
                self.num_classes, kernel_init=nn.initializers.normal(0.01)
            )

    def __call__(self, images: jax.Array, train: bool) -> Outputs:
        h = self.encoder(images, train)
        z = self.head(h, train)
        # The probe watches the representation and must not shape it.
        logits = (
            None if self.num_classes is None else self.probe(jax.lax.stop_gradient(h))
        )
        return Outputs(h, z, logits)


@dataclasses.dataclass(frozen=True)
class SimCLR:
    """Encoder f, head g and an optional linear probe on stop-gradient h.

    Parameters are {'encoder': ..., 'head': ..., 'probe': ...} and BatchNorm statistics
    {'encoder': ..., 'head': ...}; a part without any is absent. Hashable, so it can be
    a static argument of `jax.jit`.

    Attributes:
      encoder: from `create_encoder`.
      head: from `create_projection_head`.
      num_classes: classes of the probe, or None for no probe.
    """

    encoder: ResNet
    head: ProjectionHead
    num_classes: int | None = None

    def _network(self) -> _Network:
        return _Network(self.encoder.copy(), self.head.copy(), self.num_classes)

    def init(self, key: jax.Array, images: jax.Array) -> tuple[Tree, Tree]:
        """Draws (params, batch_stats) for images shaped [N, H, W, 3]."""
        variables = self._network().init(key, images, train=False)
        return dict(variables["params"]), dict(variables.get("batch_stats", {}))

    def apply(
        self, params: Tree, batch_stats: Tree, images: jax.Array, *, train: bool
    ) -> tuple[Outputs, Tree]:
        """Runs the whole model.

        Args:
          params: from `init`.
          batch_stats: from `init`, or the last call's.
          images: [N, H, W, 3] floats in [0, 1].
          train: normalise with the statistics of these N images and update the
            running ones; otherwise use the running ones.

        Returns:
          (outputs, batch_stats); the statistics are the given ones unless `train`.
        """
        variables = {"params": params, "batch_stats": batch_stats}
        if not train:
            outputs = self._network().apply(variables, images, train=False)
            return cast(Outputs, outputs), batch_stats
        outputs, updates = self._network().apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        return cast(Outputs, outputs), dict(updates["batch_stats"])
