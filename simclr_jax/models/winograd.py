"""3x3 convolutions by Winograd's minimal filtering, for CPUs.

F(2x2, 3x3) of Lavin and Gray (2016, "Fast algorithms for convolutional neural
networks"): tiles of 2x2 outputs come from 4x4 inputs by 16 products of matrices over
the channels, where the definition has 36 multiplications. With B, G and A the matrices
of the paper, d a tile of the input and k the kernel,

    output = A^T [(G k G^T) * (B^T d B)] A,

and the gradient of the kernel, from the gradient g of a tile of the output,

    G^T [sum over tiles of (B^T d B) * (A g A^T)] G.

Float32 rounds about three times as much as in the definition.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_POINTS = 4 * 4
# Copies of a pixel: 16 numbers for the 4 of a tile.
COPIES = _POINTS // 4
# Smaller images have too few tiles for the larger kernels.
_LEAST_SIDE = 6
_LEAST_CHANNELS = 32


def is_faster(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, padding: int
) -> bool:
    """Whether a float32 convolution and its gradients are faster so on CPUs."""
    size, _, *channels = kernel_shape
    return (
        (size, stride, padding) == (3, 1, 1)
        and min(x_shape[1:3]) >= _LEAST_SIDE
        and min(channels) >= _LEAST_CHANNELS
    )


def transform_kernel(kernel: jax.Array) -> jax.Array:
    """G k G^T: [3, 3, C, F] to [16, C, F]."""
    points = jnp.einsum("ai,bj,ijcf->abcf", _G, _G, kernel)
    return points.reshape(_POINTS, *kernel.shape[2:])


def convolve(x: jax.Array, points: jax.Array) -> jax.Array:
    """The convolution of [N, H, W, C], padded by one, from `transform_kernel`."""
    num_images, height, width, _ = x.shape
    rows, columns = _tiles(height), _tiles(width)
    products = jnp.einsum("tpc,tcf->tpf", _transform_input(x), points)
    products = products.reshape(4, 4, num_images, rows, columns, -1)
    # Each step takes one axis of the points to two outputs side by side.
    lines = [jnp.stack(_outputs(line), 3) for line in _outputs(products)]
    y = jnp.stack(lines, 2)  # [N, rows, 2, columns, 2, F]
    y = y.reshape(num_images, 2 * rows, 2 * columns, -1)
    return y[:, :height, :width]


def kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Gradient [3, 3, C, F] for x [N, H, W, C] and the output's gradient g."""
    sums = jnp.einsum("tpc,tpf->tcf", _transform_input(x), _transform_gradient(g))
    sums = sums.reshape(4, 4, *sums.shape[1:])
    return jnp.einsum("ai,bj,abcf->ijcf", _G, _G, sums)


def _tiles(side: int) -> int:
    return -(-side // 2)


def _transform_input(x: jax.Array) -> jax.Array:
    """B^T d B of all tiles: [16, tiles, C]."""
    rows, columns = _tiles(x.shape[1]), _tiles(x.shape[2])
    ends = (2 * rows - x.shape[1] + 1, 2 * columns - x.shape[2] + 1)
    x = jnp.pad(x, ((0, 0), (1, ends[0]), (1, ends[1]), (0, 0)))
    points = []
    for line in _inputs([x[:, i : i + 2 * rows : 2] for i in range(4)]):
        points += _inputs([line[:, :, j : j + 2 * columns : 2] for j in range(4)])
    return jnp.stack(points).reshape(_POINTS, -1, x.shape[-1])


def _transform_gradient(g: jax.Array) -> jax.Array:
    """A g A^T of all tiles: [16, tiles, F]."""
    ends = (g.shape[1] % 2, g.shape[2] % 2)
    g = jnp.pad(g, ((0, 0), (0, ends[0]), (0, ends[1]), (0, 0)))
    points = []
    for line in _spread(g[:, 0::2], g[:, 1::2]):
        points += _spread(line[:, :, 0::2], line[:, :, 1::2])
    return jnp.stack(points).reshape(_POINTS, -1, g.shape[-1])


def _inputs(d: Sequence[jax.Array]) -> list[jax.Array]:
    """B^T d of four values."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _outputs(m: Sequence[jax.Array] | jax.Array) -> list[jax.Array]:
    """A^T m along the first axis, of four values."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _spread(first: jax.Array, second: jax.Array) -> list[jax.Array]:
    """A g of two values."""
    return [first, first + second, first - second, -second]
