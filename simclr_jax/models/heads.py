"""Projection heads g: representation h -> projection z (paper section 4.2)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.models.batch_norm import BatchNorm

HEAD_KINDS = ("none", "linear", "nonlinear")
KERNEL_INITS = {
    "normal": nn.initializers.normal(0.01),
    # Up to 1/sqrt(fan_in): the default of PyTorch's linear layers.
    "uniform": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
}


class ProjectionHead(nn.Module):
    """The head g. Use `create_projection_head`, which checks its arguments.

    Hidden layers are dense, BatchNorm, ReLU. The output layer is dense and BatchNorm
    with a scale and no offset, as in the reference; dense layers have no bias, since
    the BatchNorm that follows cancels it.
    """

    kind: str = "nonlinear"
    num_layers: int = 3
    output_dim: int = 128
    hidden_dim: int | None = None
    kernel_init: str = "normal"
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    batch_norm_groups: int = 1
    dtype: Any = jnp.float32
    kept_layers: int | None = None
    frozen_batch_norm: bool = False

    @property
    def _num_layers(self) -> int:
        return {"none": 0, "linear": 1}.get(self.kind, self.num_layers)

    @property
    def num_outputs(self) -> int:
        """Length of `layers`: h and the output of each kept layer."""
        num_layers = self._num_layers if self.kept_layers is None else self.kept_layers
        return 1 + min(num_layers, self._num_layers)

    def __call__(self, h: jax.Array, train: bool = False) -> jax.Array:
        """Projects h [N, D] to z [N, K] float32; `train` as in the encoder."""
        return self.layers(h, train)[-1]

    @nn.compact
    def layers(self, h: jax.Array, train: bool = False) -> list[jax.Array]:
        """All representations from h to z: [h, output of layer 1, ..., z].

        SimCLRv2 fine-tunes from the output of the first layer (section 2.2): its
        `ft_proj_selector` is an index into this list. Outputs of hidden layers are
        taken after their ReLU.
        """
        outputs = [h]
        x = h.astype(self.dtype)
        for i in range(1, self.num_outputs):
            last = i == self._num_layers
            width = self.output_dim if last else self.hidden_dim or h.shape[-1]
            x = nn.Dense(
                width,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=KERNEL_INITS[self.kernel_init],
                name=f"dense{i}",
            )(x)
            x = BatchNorm(
                num_groups=self.batch_norm_groups,
                use_running_average=not train or self.frozen_batch_norm,
                momentum=self.batch_norm_momentum,
                epsilon=self.batch_norm_epsilon,
                use_bias=not last,
                # z is float32: the loss divides its products by as little as 0.05.
                dtype=jnp.float32 if last else self.dtype,
                name=f"bn{i}",
            )(x)
            if not last:
                x = nn.relu(x)
            outputs.append(x)
        return outputs


def create_projection_head(
    *,
    kind: str = "nonlinear",
    num_layers: int = 3,
    output_dim: int = 128,
    hidden_dim: int | None = None,
    kernel_init: str = "normal",
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_groups: int = 1,
    dtype: Any = jnp.float32,
    kept_layers: int | None = None,
    frozen_batch_norm: bool = False,
) -> ProjectionHead:
    """Builds the projection head g.

    Args:
      kind: 'none' (z = h), 'linear' (one layer) or 'nonlinear'.
      num_layers: dense layers of a nonlinear head (paper: 2; reference code: 3).
      output_dim: K, the width of z.
      hidden_dim: width of the hidden layers; D when None, as in the paper.
      kernel_init: 'normal' (std 0.01, as the reference's) or 'uniform' (as PyTorch's
        linear layers: up to 1 / sqrt(inputs)).
      batch_norm_momentum: share of the running statistics kept at each step.
      batch_norm_epsilon: added to the variance.
      batch_norm_groups: parts of the batch with statistics of their own in training.
      dtype: of the computation; parameters, statistics and z are float32.
      kept_layers: number of first layers to keep, for a network that is fine-tuned
        from a middle layer (SimCLRv2, section 2); None keeps all.
      frozen_batch_norm: always use the running statistics, and leave them unchanged.

    Returns:
      A Linen module: `init(key, h)`, `apply(variables, h, train=False)` -> z [N, K].

    Raises:
      ValueError: an argument outside the values above.
    """
    if kind not in HEAD_KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(HEAD_KINDS)}")
    if kernel_init not in KERNEL_INITS:
        raise ValueError(
            f"kernel_init={kernel_init!r}: must be one of {', '.join(KERNEL_INITS)}"
        )
    for name, value in (
        ("num_layers", num_layers),
        ("output_dim", output_dim),
        ("hidden_dim", 1 if hidden_dim is None else hidden_dim),
    ):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if kept_layers is not None and kept_layers < 0:
        raise ValueError(f"kept_layers={kept_layers}: must not be negative")
    return ProjectionHead(
        kind=kind,
        num_layers=num_layers,
        output_dim=output_dim,
        hidden_dim=hidden_dim,
        kernel_init=kernel_init,
        batch_norm_momentum=batch_norm_momentum,
        batch_norm_epsilon=batch_norm_epsilon,
        batch_norm_groups=batch_norm_groups,
        dtype=dtype,
        kept_layers=kept_layers,
        frozen_batch_norm=frozen_batch_norm,
    )
