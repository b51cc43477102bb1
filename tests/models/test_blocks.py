"""Selective kernels, squeeze-and-excitation and shortcuts against NumPy in float64."""

import functools
import math

import jax
import numpy as np
import pytest
from fidelity import EQUATIONS
from flax import linen as nn

from simclr_jax.models import blocks

NORM = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def convolution(filters, size, *, stride=1, use_bias=False, name):
    padding = (size - 1) // 2
    return nn.Conv(filters, (size, size), stride, padding, use_bias=use_bias, name=name)


def random_variables(module, x, *args):
    """Values with which every term counts and no gate saturates."""
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        values = generator.normal(size=leaf.shape) / math.sqrt(
            math.prod(leaf.shape[:-1])
        )
        return np.float32(0.5 + np.abs(values) if path[-1].key == "var" else values)

    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, *args), x)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def applied(module, size, *args):
    """Variables and images x in float64, and the module's output for them."""
    x = np.random.default_rng(0).normal(size=(3, *size, 6)).astype(np.float32)
    variables = random_variables(module, x, *args)
    output = jax.jit(lambda variables, x: module.apply(variables, x, *args))
    return jax.tree.map(np.float64, variables), np.float64(x), output(variables, x)


def convolved(x, kernel, stride):
    """A 3x3 convolution padded with a zero on each side, term by term."""
    rows, columns = (range(0, size, stride) for size in x.shape[1:3])
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [[x[:, i : i + 3, j : j + 3] for j in columns] for i in rows]
    return np.einsum("ijnabc,abcf->nijf", windows, kernel)


def normalised(x, v, name):
    stats, params = v["batch_stats"][name], v["params"][name]
    unit = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    return params["scale"] * unit + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def squeeze_excited(x, params):
    def dense(x, layer):
        return x @ np.float64(layer["kernel"][0, 0]) + layer["bias"]

    gate = dense(relu(dense(x.mean((1, 2)), params["reduce"])), params["expand"])
    return x / (1 + np.exp(-gate))[:, None, None]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_selective_kernel_by_its_definition(fidelity, size, stride):
    module = blocks.SelectiveKernel(5, stride, 0.5, convolution, NORM)
    v, x, got = applied(module, size, False)
    kernels = {name: layer.get("kernel") for name, layer in v["params"].items()}
    features = relu(normalised(convolved(x, kernels["conv"], stride), v, "bn"))
    first, second = features[..., :5], features[..., 5:]
    pooled = (first + second).mean((1, 2))
    middle = relu(normalised(pooled @ kernels["fc1"][0, 0], v, "fc1_bn"))
    logits = middle @ kernels["fc2"][0, 0]
    share = 1 / (1 + np.exp(logits[:, 5:] - logits[:, :5]))[:, None, None]
    want = share * first + (1 - share) * second
    fidelity("selective kernel", got, want, source=EQUATIONS, of_largest=1e-5)


@pytest.mark.parametrize(
    ("filters", "ratio", "width"),
    [(64, 0.0625, 32), (512, 0.0625, 32), (1024, 0.0625, 64), (159, 0.3, 47)],
)
def test_attention_has_a_share_of_the_filters_but_32_at_least(filters, ratio, width):
    module = blocks.SelectiveKernel(filters, 1, ratio, convolution, NORM)
    params = random_variables(module, np.zeros((1, 4, 4, 3)), False)["params"]
    assert params["fc1"]["kernel"].shape == (1, 1, filters, width)
    assert params["fc2"]["kernel"].shape == (1, 1, width, 2 * filters)
    assert {*params["fc1"], *params["fc2"]} == {"kernel"}


def test_squeeze_and_excitation_by_its_definition(fidelity):
    v, x, got = applied(blocks.SqueezeExcitation(4, convolution), (5, 3))
    want = squeeze_excited(x, v["params"])
    fidelity("squeeze-and-excitation", got, want, source=EQUATIONS, of_largest=1e-5)


@pytest.mark.parametrize(
    ("filters", "ratio", "width"), [(64, 0.25, 16), (6, 0.3, 1), (2, 0.1, 1)]
)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_squeeze_and_excitation_ends_the_main_path(bottleneck, filters, ratio, width):
    module = blocks.ResidualBlock(
        filters, 1, bottleneck, True, 0.0, ratio, convolution, NORM
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    variables = random_variables(module, x, False)
    se = variables["params"]["se"]
    assert se["reduce"]["kernel"].shape[-1] == width
    apply = functools.partial(module.apply, train=False, capture_intermediates=True)
    got, state = jax.jit(apply)(variables, x)
    state = state["intermediates"]
    main = state["bn3" if bottleneck else "bn2"]["__call__"][0]
    main = squeeze_excited(np.float64(main), se)
    want = relu(main + state["shortcut"]["__call__"][0])
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 4), (7, 5), (6, 5), (1, 1)])
def test_pooled_shortcut_window_by_window(fidelity, size, stride):
    """A strided window always counts four pixels, those beyond the image as zeros."""
    module = blocks.Shortcut(4, stride, True, convolution, NORM)
    v, x, got = applied(module, size, False)
    rows, columns = (range(0, s, stride) for s in size)
    windows = [[x[:, i : i + 2, j : j + 2] for j in columns] for i in rows]
    pooled = [
        [w.sum((1, 2)) / (4 if stride == 2 else w[0, ..., 0].size) for w in row]
        for row in windows
    ]
    pooled = np.transpose(pooled, (2, 0, 1, 3))
    want = normalised(pooled @ v["params"]["conv"]["kernel"][0, 0], v, "bn")
    fidelity("ResNet-D shortcut", got, want, source=EQUATIONS, of_largest=1e-5)


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_plain_shortcut_drops_pixels(size, stride):
    module = blocks.Shortcut(4, stride, False, convolution, NORM)
    v, x, got = applied(module, size, False)
    pixels = x[:, ::stride, ::stride]
    want = normalised(pixels @ v["params"]["conv"]["kernel"][0, 0], v, "bn")
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
