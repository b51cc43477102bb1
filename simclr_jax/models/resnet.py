"""ResNet encoders f: images -> representation h.

Post-activation ResNets (He et al., 2016) as SimCLR uses them: the width multiplier
scales every layer including the stem, bottleneck blocks stride on the 3x3 convolution,
and the last BatchNorm of each block starts at zero so that a fresh network is shallow
(unless `zero_init_residual` is False).
SimCLRv2's largest nets add selective kernels and ResNet-D's stem and shortcuts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from simclr_jax.models import normalization as normalizations
from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.blocks import (
    BASE_FILTERS,
    EXPANSION,
    NARROW,
    Convolution,
    Norm,
    ResidualBlock,
    Stem,
)
from simclr_jax.models.convolutions import GRADIENT_DTYPES, Conv2d
from simclr_jax.models.pointwise import COVARIANCE, LazyConvolution

# depth -> (bottleneck blocks?, blocks in each of the four groups)
DEPTHS = {
    # None of the paper's; it compiles in half the time of the next.
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
    200: (True, (3, 24, 36, 3)),
}
NUM_GROUPS = 4
STEMS = ("imagenet", "cifar")
MAX_POOL_PADDINGS = ("torch", "same")
KERNEL_INITS = {
    # std 1/sqrt(fan_in) after truncation: what SimCLR was trained with.
    "truncated_normal": nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal"
    ),
    # std sqrt(2/fan_out): torchvision's ResNets.
    "he_normal": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
}


def _keeps_narrow(primitive: Any, *_: Any, **params: Any) -> bool:
    # Sums are small, and each costs a message where the batch is split over devices.
    kept = (NARROW, COVARIANCE)
    return primitive.name == "reduce_sum" or params.get("name") in kept


# What the backward pass keeps of a residual block in addition to its input; None keeps
# everything.
_POLICIES = {
    "none": None,
    "wide": _keeps_narrow,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
# The policy of each group, from the least to the most computed again. Group 1 has the
# largest activations, a half of all, so that dropping its own alone gains the most for
# each second.
REMATERIALIZATIONS = {
    "none": ("none", "none", "none", "none"),
    "wide_1": ("wide", "none", "none", "none"),
    "wide_2": ("wide", "wide", "none", "none"),
    "wide": ("wide", "wide", "wide", "wide"),
    "blocks": ("blocks", "blocks", "blocks", "blocks"),
}


def _convolution(
    filters: int,
    size: int,
    *,
    stride: int = 1,
    use_bias: bool = False,
    name: str,
    **shared: Any,
) -> Conv2d:
    """A convolution with equal padding on both sides for any stride."""
    return Conv2d(filters, size, stride=stride, use_bias=use_bias, name=name, **shared)


class Group(nn.Module):
    """Residual blocks of one resolution; only the first may stride or project."""

    filters: int
    num_blocks: int
    stride: int
    bottleneck: bool
    first_projection: bool
    sk_ratio: float
    se_ratio: float
    remat: str
    convolution: Convolution
    norm: Norm
    lazy_convolution: Callable[..., LazyConvolution] | None = None
    zero_init_residual: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, F]."""
        block = ResidualBlock
        if (policy := _POLICIES[self.remat]) is not None:
            block = nn.remat(ResidualBlock, policy=policy, static_argnums=(2,))
        for i in range(self.num_blocks):
            x = block(
                filters=self.filters,
                stride=self.stride if i == 0 else 1,
                bottleneck=self.bottleneck,
                projection_shortcut=self.first_projection and i == 0,
                sk_ratio=self.sk_ratio,
                se_ratio=self.se_ratio,
                convolution=self.convolution,
                norm=self.norm,
                lazy_convolution=self.lazy_convolution,
                zero_init_residual=self.zero_init_residual,
                name=f"block{i + 1}",
            )(x, train)
        return x


class ResNet(nn.Module):
    """The encoder f. Use `create_encoder`, which checks its arguments."""

    depth: int
    width: float = 1
    sk_ratio: float = 0.0
    se_ratio: float = 0.0
    stem: str = "imagenet"
    first_group_projection: bool = False
    max_pool_padding: str = "torch"
    normalization: str = "none"
    kernel_init: str = "truncated_normal"
    zero_init_residual: bool = True
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32
    batch_norm_groups: int = 1
    pointwise_norm: bool = False
    remat: str = "none"
    gradient_dtype: str = "float32"
    frozen_through: int = -1
    frozen_batch_norm: bool = False

    @property
    def feature_width(self) -> int:
        """D, the width of h: 512 or 2048 (bottleneck) times the width multiplier."""
        bottleneck, _ = DEPTHS[self.depth]
        return self._filters(3) * (EXPANSION if bottleneck else 1)

    def _filters(self, group: int) -> int:
        return max(1, round(BASE_FILTERS * self.width)) * 2**group

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Encodes images.

        Args:
          images: [N, H, W, 3], floats in [0, 1]; sharded on N or not.
          train: True normalises with the statistics of these N images (over all
            devices) and updates the running statistics; False uses the running ones.
            Frozen layers always use the running ones.

        Returns:
          h [N, D] float32.
        """
        adapts = train and not self.frozen_batch_norm
        convolution = functools.partial(
            _convolution,
            dtype=self.dtype,
            kernel_init=KERNEL_INITS[self.kernel_init],
            gradient_dtype=self.gradient_dtype,
        )
        lazy = functools.partial(
            LazyConvolution,
            dtype=self.dtype,
            kernel_init=KERNEL_INITS[self.kernel_init],
        )
        norm = functools.partial(
            BatchNorm,
            num_groups=self.batch_norm_groups,
            momentum=self.batch_norm_momentum,
            epsilon=self.batch_norm_epsilon,
            dtype=self.dtype,
        )
        bottleneck, blocks = DEPTHS[self.depth]
        x = images
        if (moments := normalizations.moments(self.normalization)) is not None:
            mean, std = (jnp.asarray(v, jnp.float32) for v in moments)
            x = (x - mean) / std
        x = Stem(
            self.stem,
            self._filters(0),
            self.sk_ratio > 0,
            self.max_pool_padding,
            convolution,
            norm,
            name="stem",
        )(x.astype(self.dtype), adapts and self.frozen_through < 0)
        for group, num_blocks in enumerate(blocks):
            if group == self.frozen_through:
                x = jax.lax.stop_gradient(x)
            x = Group(
                filters=self._filters(group),
                num_blocks=num_blocks,
                stride=1 if group == 0 else 2,
                bottleneck=bottleneck,
                # Shapes change at the start of every group but the first of a
                # basic-block net, where torchvision has an identity shortcut.
                first_projection=group > 0 or bottleneck or self.first_group_projection,
                sk_ratio=self.sk_ratio,
                se_ratio=self.se_ratio,
                remat=REMATERIALIZATIONS[self.remat][group],
                convolution=convolution,
                norm=norm,
                lazy_convolution=lazy if self.pointwise_norm else None,
                zero_init_residual=self.zero_init_residual,
                name=f"group{group + 1}",
            )(x, adapts and self.frozen_through <= group)
        if self.frozen_through == len(blocks):
            x = jax.lax.stop_gradient(x)
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


def strides(encoder: ResNet) -> tuple[int, ...]:
    """The strides of `feature_maps`."""
    first = 4 if encoder.stem == "imagenet" else 1
    return tuple(first * 2**group for group in range(NUM_GROUPS))


def feature_maps(
    encoder: ResNet, variables: dict[str, Any], images: jax.Array
) -> list[jax.Array]:
    """The outputs of the four groups of blocks, C2 to C5 of a feature pyramid.

    Args:
      encoder: from `create_encoder`.
      variables: its parameters and statistics; running statistics are used.
      images: [N, H, W, 3], floats in [0, 1].

    Returns:
      Four maps [N, H/s, W/s, C] with `strides` s; h is the mean of the last one over
      its positions.
    """
    names = [f"group{group}" for group in range(1, NUM_GROUPS + 1)]
    _, state = encoder.apply(
        variables,
        images,
        train=False,
        capture_intermediates=lambda module, method: (
            isinstance(module, Group) and method == "__call__"
        ),
        mutable=["intermediates"],
    )
    return [state["intermediates"][name]["__call__"][0] for name in names]


def create_encoder(
    *,
    depth: int,
    width: float = 1,
    sk_ratio: float = 0.0,
    se_ratio: float = 0.0,
    stem: str = "imagenet",
    first_group_projection: bool = False,
    max_pool_padding: str = "torch",
    normalization: Any = "none",
    kernel_init: str = "truncated_normal",
    zero_init_residual: bool = True,
    batch_norm_momentum: float = 0.9,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_groups: int = 1,
    pointwise_norm: bool = False,
    dtype: Any = jnp.float32,
    remat: str = "none",
    gradient_dtype: str = "float32",
    frozen_through: int = -1,
    frozen_batch_norm: bool = False,
) -> ResNet:
    """Builds the encoder f.

    Args:
      depth: 10, 18, 34, 50, 101, 152 or 200.
      width: multiplier of every layer's filters, any positive number.
      sk_ratio: above 0 gives SimCLRv2's selective-kernel nets (0.0625 in the paper):
        two-stream 3x3 convolutions in bottlenecks, whose attention has this share of
        the filters (at least 32), and ResNet-D's stem and shortcuts.
      se_ratio: above 0 ends each block with squeeze-and-excitation, whose middle has
        this share of the block's 3x3 filters.
      stem: 'imagenet' (7x7/2 convolution, 3x3/2 max-pool) or 'cifar' (3x3/1).
      first_group_projection: True adds a projection shortcut to the first group of
        ResNet-18 and 34 too, as in Google's code; torchvision has an identity there.
      max_pool_padding: 'torch' pads one pixel on each side; 'same' is TensorFlow's.
      normalization: 'none', as in SimCLR; 'imagenet' first subtracts ImageNet's mean
        and divides by its standard deviation, as torchvision's weights expect; or
        others, as in `normalization.moments`. Images are in [0, 1] with any.
      kernel_init: a name in `KERNEL_INITS`.
      zero_init_residual: the last BatchNorm of a block starts with scale 0 (Goyal et
        al., 2017), so that the block starts as its shortcut; False: with 1.
      batch_norm_momentum: share of the running statistics kept at each step.
      batch_norm_epsilon: added to the variance.
      batch_norm_groups: parts of the batch with statistics of their own in training.
      pointwise_norm: the last BatchNorm of a bottleneck block takes its statistics from
        the input of the convolution before it, see `pointwise`: the same function, in
        less time on TPUs and more on CPUs.
      dtype: of the computation; parameters and statistics are always float32.
      remat: what the backward pass recomputes to save memory: 'none', 'wide' (the
        widest layer of each block, 40 % of the memory of a bottleneck), 'wide_1' and
        'wide_2' (that of the blocks of the first group, or two, alone) or 'blocks'
        (whole blocks).
      gradient_dtype: of the gradients of kernels of a bfloat16 encoder when they are
        summed over devices: 'float32', or 'bfloat16', which halves the traffic; with
        pointwise_norm those of the last kernel of a bottleneck stay in float32.
      frozen_through: 0 freezes the stem, i also groups 1 to i (4: the whole encoder):
        no gradient passes, and BatchNorm uses its running statistics and leaves them
        unchanged; -1 freezes nothing. Optimisers are not affected: see `optim.freeze`.
      frozen_batch_norm: BatchNorm uses its running statistics in all layers.

    Returns:
      A Linen module: `init(key, images)`, `apply(variables, images, train=False)`
      with images [N, H, W, 3] in [0, 1] and h [N, D] float32.

    Raises:
      ValueError: an argument outside the values above.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth}: must be one of {', '.join(map(str, DEPTHS))}")
    if not width > 0:
        raise ValueError(f"width={width}: must be positive")
    for name, ratio in (("sk_ratio", sk_ratio), ("se_ratio", se_ratio)):
        if not 0 <= ratio <= 1:
            raise ValueError(f"{name}={ratio}: must be between 0 and 1")
    if not -1 <= frozen_through <= NUM_GROUPS:
        raise ValueError(
            f"frozen_through={frozen_through}: must be between -1 and {NUM_GROUPS}"
        )
    for name, value, allowed in (
        ("stem", stem, STEMS),
        ("max_pool_padding", max_pool_padding, MAX_POOL_PADDINGS),
        ("kernel_init", kernel_init, KERNEL_INITS),
        ("remat", remat, REMATERIALIZATIONS),
        ("gradient_dtype", gradient_dtype, GRADIENT_DTYPES),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
    try:
        normalization = normalizations.canonical(normalization)
    except ValueError as error:
        raise ValueError(f"normalization={normalization!r}: {error}") from error
    return ResNet(
        depth=depth,
        width=width,
        sk_ratio=sk_ratio,
        se_ratio=se_ratio,
        stem=stem,
        first_group_projection=first_group_projection,
        max_pool_padding=max_pool_padding,
        normalization=normalization,
        kernel_init=kernel_init,
        zero_init_residual=zero_init_residual,
        batch_norm_momentum=batch_norm_momentum,
        batch_norm_epsilon=batch_norm_epsilon,
        batch_norm_groups=batch_norm_groups,
        pointwise_norm=pointwise_norm,
        dtype=dtype,
        remat=remat,
        gradient_dtype=gradient_dtype,
        frozen_through=frozen_through,
        frozen_batch_norm=frozen_batch_norm,
    )
