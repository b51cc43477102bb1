"""Convolutions against `nn.Conv`, float64 sums, and the programs made of them."""

import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax import parallel
from simclr_jax.models import convolutions, create_encoder
from simclr_jax.models.convolutions import Conv2d, conv2d, max_pool_by_comparisons

# side of the kernel, stride, side of the images
CASES = [
    *itertools.product([1], [1, 2], [1, 4, 7]),
    *itertools.product([3], [1, 2], [1, 2, 3, 4, 7, 8]),
    *itertools.product([7], [2], [2, 8, 13]),
]
NUM_IMAGES, CHANNELS, FILTERS = 4, 6, 5


def draw(size: int, stride: int, side: int) -> tuple[np.ndarray, ...]:
    """float64 images, kernel and gradient of the output.

    Multiples of 2^-6 up to 1: exact in bfloat16, as are sums of their products, which
    are multiples of 2^-12 below 2^10, in float32, whatever the order.
    """
    generator = np.random.default_rng([size, stride, side])
    outputs = (side + 2 * ((size - 1) // 2) - size) // stride + 1
    shapes = (
        # Higher than wide, so that the two cannot be mixed up.
        (NUM_IMAGES, side + 1, side, CHANNELS),
        (size, size, CHANNELS, FILTERS),
        (NUM_IMAGES, side // stride + 1, outputs, FILTERS),
    )
    return tuple(generator.integers(-64, 65, shape) / 64 for shape in shapes)


def by_hand(x, kernel, g, stride):
    """Output and both gradients in float64, from the definition."""
    size = len(kernel)
    padding = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in padded.shape[1:3])
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    dx, dk = np.zeros_like(padded), np.zeros_like(kernel)
    for row, column in itertools.product(range(height), range(width)):
        window = np.s_[
            :,
            row * stride : row * stride + size,
            column * stride : column * stride + size,
        ]
        y[:, row, column] = np.tensordot(padded[window], kernel, 3)
        if g is not None:
            at = g[:, row, column]
            dx[window] += np.tensordot(at, kernel, ([1], [3]))
            dk += np.tensordot(padded[window], at, ([0], [0]))
    inner = np.s_[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]
    return y, dx[inner], dk


def with_gradients(convolve, x, kernel, g):
    y, pull = jax.vjp(convolve, x, kernel)
    return y, *pull(g.astype(y.dtype))


def padded_conv(size, stride, **settings):
    return functools.partial(conv2d, stride=stride, padding=(size - 1) // 2, **settings)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of one image, where the real budget would take all at once."""
    monkeypatch.setattr(convolutions, "_CHUNK_BYTES", 4)
    monkeypatch.setattr(convolutions, "_LEAST_CHUNK", 0)


@pytest.mark.parametrize("formulation", convolutions.FORMULATIONS)
@pytest.mark.parametrize(("size", "stride", "side"), CASES)
def test_values_and_gradients_are_those_of_the_definition(
    formulation, size, stride, side
):
    x, kernel, g = draw(size, stride, side)
    want = by_hand(x, kernel, g, stride)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, g)]
    convolve = padded_conv(size, stride, formulation=formulation)
    got = jax.jit(functools.partial(with_gradients, convolve))(*arrays)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 4), (3, 2, 7), (7, 2, 8)])
def test_chunks_add_up_to_the_same_gradient(size, stride, side):
    x, kernel, g = draw(size, stride, side)
    arrays = [jnp.asarray(a, jnp.float32) for a in (x, kernel, g)]
    convolve = padded_conv(size, stride, formulation="cpu")
    compute = functools.partial(with_gradients, convolve)
    assert "length=4" in str(jax.make_jaxpr(compute)(*arrays))  # one image a turn
    want = by_hand(x, kernel, g, stride)[2]
    np.testing.assert_array_equal(jax.jit(compute)(*arrays)[2], want)


@pytest.mark.parametrize(
    ("num_images", "floats", "total", "chunk"),
    [
        (128, 2**18, 0, 4),  # 4 MiB are 2^20 floats
        (128, 2**18 - 1, 0, 4),
        (30, 2**18, 0, 3),  # a divisor
        (128, 2**30, 0, 1),
        (6, 1, 0, 6),
        (128, 2**18, 2**20, 8),  # twice the gradient
    ],
)
def test_a_chunk_fills_the_budget(num_images, floats, total, chunk):
    assert convolutions._chunk_size(num_images, floats, total) == chunk


@pytest.mark.parametrize("formulation", convolutions.FORMULATIONS)
@pytest.mark.parametrize(("size", "stride", "side"), [(1, 2, 7), (3, 1, 4), (3, 2, 2)])
def test_a_bfloat16_gradient_is_exact_in_float32_only(formulation, size, stride, side):
    x, kernel, g = draw(size, stride, side)
    want = by_hand(x, kernel, g, stride)
    arrays = (
        jnp.asarray(x, jnp.bfloat16),
        jnp.asarray(kernel, jnp.float32),
        jnp.asarray(g, jnp.bfloat16),
    )
    errors = {}
    for dtype in convolutions.GRADIENT_DTYPES:
        convolve = padded_conv(
            size, stride, formulation=formulation, gradient_dtype=dtype
        )
        y, dx, dk = jax.jit(functools.partial(with_gradients, convolve))(*arrays)
        assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16, jnp.bfloat16, "float32")
        # Eight bits, rounded to nearest.
        np.testing.assert_allclose(y.astype(float), want[0], rtol=2**-8, atol=1e-9)
        np.testing.assert_allclose(dx.astype(float), want[1], rtol=2**-8, atol=1e-9)
        errors[dtype] = np.max(np.abs(dk - want[2]) / np.max(np.abs(want[2])))
    assert errors["float32"] == 0
    assert 2**-12 < errors["bfloat16"] < 2**-8


@pytest.mark.parametrize("formulation", convolutions.FORMULATIONS)
def test_the_kernel_is_rounded_to_the_computation(formulation):
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    kernel = jnp.full((1, 1, 1, 1), 1 + 2**-7 + 2**-12, jnp.float32)
    assert conv2d(x, kernel, formulation=formulation)[0, 0, 0, 0] == 1 + 2**-7


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride", "use_bias"), [(1, 2, True), (3, 1, False), (7, 2, True)]
)
def test_a_layer_is_flax_s(size, stride, use_bias, dtype):
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, 9, 8, 6))
    init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    mine = Conv2d(5, size, stride, use_bias, dtype, init, "direct", "bfloat16")
    flax_s = nn.Conv(
        5,
        (size, size),
        strides=stride,
        padding=(size - 1) // 2,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init,
    )
    variables = flax_s.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, mine.init(key, x), variables)
    variables = jax.tree.map(lambda p: p + 0.25, variables)  # a bias too

    def run(layer):
        return jax.jit(
            lambda v, x: with_gradients(
                lambda x, v: layer.apply(v, x), x, v, flax_s.apply(variables, x)
            )
        )(variables, x)

    # Both round to `dtype` at the same places.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-6, atol=1e-6
        ),
        run(mine),
        run(flax_s),
    )


def operations(function, *arrays):
    return [
        line.split(" = ")[1].split("[")[0].split()[0]
        for line in str(jax.make_jaxpr(function)(*arrays)).splitlines()
        if " = " in line
    ]


@pytest.mark.parametrize(("side", "slow"), [(1, True), (2, True), (3, False)])
def test_what_is_slow_on_cpus_is_no_convolution_there(side, slow):
    x, kernel, g = (jnp.asarray(a, jnp.float32) for a in draw(3, 1, side))
    x, g = x[:, 1:], g[:, 1:]
    for formulation in convolutions.FORMULATIONS:
        convolve = padded_conv(3, 1, formulation=formulation)
        found = operations(functools.partial(with_gradients, convolve), x, kernel, g)
        expected = {"direct": 3, "cpu": 0 if slow else 2}[formulation]
        assert found.count("conv_general_dilated") == expected
        # Copies of the image for every place of the kernel.
        assert ("concatenate" in found) == (formulation == "cpu")


@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1)), ((0, 2), (2, 1))])
@pytest.mark.parametrize("side", [1, 2, 5, 8])
def test_max_pool_is_flax_s_even_where_values_tie(padding, side):
    generator = np.random.default_rng(side)
    x = generator.integers(-2, 3, (2, side + 1, side, 3)).astype(np.float32)
    settings = {"strides": (2, 2), "padding": padding}
    want, want_pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), **settings), x)
    got, pull = jax.vjp(lambda x: max_pool_by_comparisons(x, (3, 3), **settings), x)
    np.testing.assert_array_equal(got, want)
    g = generator.integers(1, 100, got.shape).astype(np.float32)
    np.testing.assert_array_equal(pull(g)[0], want_pull(g)[0])


def test_max_pool_keeps_what_is_not_a_number():
    for place in itertools.product(range(2), range(2)):
        x = jnp.ones((1, 2, 2, 1)).at[0, *place, 0].set(jnp.nan)
        pooled = max_pool_by_comparisons(x, (2, 2), strides=(2, 2), padding="SAME")
        assert jnp.isnan(pooled).all()


def small_encoder(depth, **settings):
    return create_encoder(depth=depth, width=0.0625, **settings)


@functools.cache
def encoder_results(depth, formulation, remat="none"):
    """(variables, h, gradients) of a small net with every branch open."""
    images = jax.random.uniform(jax.random.key(1), (8, 64, 64, 3))
    encoder = small_encoder(depth, convolutions=formulation, remat=remat)
    variables = jax.jit(encoder.init)(jax.random.key(0), images)
    # The last scale of each block starts at 0, which would hide its convolutions.
    params = jax.tree.map(lambda p: jnp.where(p == 0, 0.1, p), variables["params"])

    def objective(params):
        tree = {**variables, "params": params}
        h, _ = encoder.apply(tree, images, train=True, mutable=["batch_stats"])
        return jnp.mean(h**2), h

    gradients, h = jax.jit(jax.grad(objective, has_aux=True))(params)
    return variables, h, gradients


def worst(a, b):
    return max(
        float(jnp.linalg.norm(x - y) / (jnp.linalg.norm(y) + 1e-6))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("depth", [18, 50])
def test_a_net_is_the_same_in_both_formulations(depth):
    variables, h, gradients = encoder_results(depth, "direct")
    cpu_variables, cpu_h, cpu_gradients = encoder_results(depth, "cpu")
    jax.tree.map(np.testing.assert_array_equal, cpu_variables, variables)
    print(worst(cpu_h, h), worst(cpu_gradients, gradients))


def test_blocks_can_be_computed_again():
    for formulation in convolutions.FORMULATIONS:
        _, h, gradients = encoder_results(18, formulation)
        _, again_h, again_gradients = encoder_results(18, formulation, "blocks")
        print(worst(again_h, h), worst(again_gradients, gradients))
