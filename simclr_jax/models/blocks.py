"""The parts of a ResNet: stem, residual block, shortcut, selective kernel.

Blocks receive `convolution(filters, size, stride=1, name=...)` and
`norm(use_running_average=..., name=...)` as arguments, with the encoder's dtype,
initialiser and momentum already set.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.convolutions import Conv2d, max_pool
from simclr_jax.models.pointwise import LazyConvolution

BASE_FILTERS = 64
# Name of the activations that rematerialisation may keep: the outputs of all
# convolutions of a block but the last, widest one.
NARROW = "narrow"
# A bottleneck block ends with 4x the filters of its 3x3 convolution.
EXPANSION = 4
# Selective kernels weight two streams of features.
_STREAMS = 2
_LEAST_ATTENTION_WIDTH = 32

Convolution = Callable[..., Conv2d]
Norm = Callable[..., BatchNorm]


class Stem(nn.Module):
    """First layers, by `kind`.

    imagenet: 7x7/2 convolution and 3x3/2 max-pool. imagenet with `deep` (ResNet-D, He
    et al. 2019, used in SimCLRv2's selective-kernel nets): 3x3/2, 3x3 and 3x3
    convolutions, the first two with half the filters, and the max-pool. cifar: one
    3x3/1 convolution.
    """

    kind: str
    filters: int
    deep: bool
    max_pool_padding: str
    convolution: Convolution
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [N, H, W, 3] to [N, H/4, W/4, F] (imagenet) or [N, H, W, F] (cifar)."""
        half = max(1, self.filters // 2)
        if self.kind == "cifar":
            layers = [(self.filters, 3, 1)]
        elif self.deep:
            layers = [(half, 3, 2), (half, 3, 1), (self.filters, 3, 1)]
        else:
            layers = [(self.filters, 7, 2)]
        for i, (filters, size, stride) in enumerate(layers, start=1):
            x = self.convolution(filters, size, stride=stride, name=f"conv{i}")(x)
            x = nn.relu(self.norm(use_running_average=not train, name=f"bn{i}")(x))
        if self.kind == "cifar":
            return x
        # Max-pools are padded with -inf. 'SAME' pads even sides at the end only.
        padding = ((1, 1), (1, 1)) if self.max_pool_padding == "torch" else "SAME"
        return max_pool(x, (3, 3), (2, 2), padding)


class SelectiveKernel(nn.Module):
    """A 3x3 convolution with attention over two streams (Li et al., 2019).

    As in SimCLRv2: one convolution computes both streams; their channel-wise softmax
    weights are computed from the pooled sum of the two.
    """

    filters: int
    stride: int
    ratio: float
    convolution: Convolution
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, F]."""
        norm = functools.partial(self.norm, use_running_average=not train)
        x = self.convolution(
            _STREAMS * self.filters, 3, stride=self.stride, name="conv"
        )(x)
        x = checkpoint_name(x, NARROW)
        x = nn.relu(norm(name="bn")(x))
        streams = x.reshape(*x.shape[:-1], _STREAMS, self.filters)

        pooled = jnp.mean(
            jnp.sum(streams, axis=-2), axis=(1, 2), keepdims=True, dtype=jnp.float32
        )
        width = max(int(self.filters * self.ratio), _LEAST_ATTENTION_WIDTH)
        weights = self.convolution(width, 1, name="fc1")(pooled)
        weights = nn.relu(norm(name="fc1_bn")(weights))
        weights = self.convolution(_STREAMS * self.filters, 1, name="fc2")(weights)
        weights = weights.reshape(-1, 1, 1, _STREAMS, self.filters)
        weights = nn.softmax(weights.astype(jnp.float32), axis=-2).astype(x.dtype)
        return jnp.sum(streams * weights, axis=-2)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels (Hu et al., 2018)."""

    width: int
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to the same shape."""
        gate = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        gate = self.convolution(self.width, 1, use_bias=True, name="reduce")(gate)
        gate = nn.relu(gate)
        gate = self.convolution(x.shape[-1], 1, use_bias=True, name="expand")(gate)
        return x * nn.sigmoid(gate)


class Shortcut(nn.Module):
    """1x1 convolution and BatchNorm for blocks that change the shape.

    `pool` (ResNet-D) averages 2x2 pixels before a convolution of stride 1, where a
    strided one would drop three pixels in four.
    """

    filters: int
    stride: int
    pool: bool
    convolution: Convolution
    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, F]."""
        stride = self.stride
        if self.pool:
            # SimCLRv2 pads at the end; zeros count in the mean of a strided pool (which
            # matters for odd sides) and not in the mean of an unstrided pool.
            x = nn.avg_pool(
                x,
                (2, 2),
                strides=(stride, stride),
                padding=((0, 1), (0, 1)),
                count_include_pad=stride > 1,
            )
            stride = 1
        x = self.convolution(self.filters, 1, stride=stride, name="conv")(x)
        return self.norm(use_running_average=not train, name="bn")(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 in a bottleneck, and a shortcut."""

    filters: int
    stride: int
    bottleneck: bool
    projection_shortcut: bool
    sk_ratio: float
    se_ratio: float
    convolution: Convolution
    norm: Norm
    lazy_convolution: Callable[..., LazyConvolution] | None = None
    zero_init_residual: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to [N, H / stride, W / stride, F]."""
        norm = functools.partial(self.norm, use_running_average=not train)
        if self.bottleneck:
            widths = [self.filters, self.filters, EXPANSION * self.filters]
            sizes, strides = [1, 3, 1], [1, self.stride, 1]
        else:
            widths = [self.filters, self.filters]
            sizes, strides = [3, 3], [self.stride, 1]
        last = len(widths)
        # Only bottlenecks have selective kernels, in place of their 3x3 convolution.
        selective = 2 if self.bottleneck and self.sk_ratio > 0 else None

        shortcut = x
        if self.projection_shortcut:
            shortcut = Shortcut(
                widths[-1],
                self.stride,
                self.sk_ratio > 0,
                self.convolution,
                self.norm,
                name="shortcut",
            )(x, train)

        layers = zip(widths[:-1], sizes, strides, strict=False)
        for i, (width, size, stride) in enumerate(layers, start=1):
            if i == selective:
                x = SelectiveKernel(
                    width,
                    stride,
                    self.sk_ratio,
                    self.convolution,
                    self.norm,
                    name=f"conv{i}_sk",
                )(x, train)
                continue
            x = self.convolution(width, size, stride=stride, name=f"conv{i}")(x)
            x = checkpoint_name(x, NARROW)
            x = nn.relu(norm(name=f"bn{i}")(x))
        init = nn.initializers
        scale_init = init.zeros if self.zero_init_residual else init.ones
        last_norm = norm(name=f"bn{last}", scale_init=scale_init)
        if train and self.bottleneck and self.lazy_convolution:
            x = last_norm(self.lazy_convolution(widths[-1], name=f"conv{last}")(x))
        else:
            convolution = self.convolution(widths[-1], sizes[-1], name=f"conv{last}")
            x = last_norm(convolution(x))
        if self.se_ratio > 0:
            width = max(1, int(self.filters * self.se_ratio))
            x = SqueezeExcitation(width, self.convolution, name="se")(x)
        return nn.relu(x + shortcut)
