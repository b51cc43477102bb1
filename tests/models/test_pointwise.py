"""BatchNorm of a 1x1 convolution by the moments of its input."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first

from simclr_jax import parallel
from simclr_jax.configs import smoke
from simclr_jax.models import blocks, pointwise, resnet
from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.pointwise import Pointwise
from simclr_jax.training import arithmetic, build

EPSILON = 1e-5


def draw(seed, *shape, dtype=np.float32):
    x = np.random.default_rng(seed).normal(size=shape)
    return x.astype(np.float32).astype(dtype)


def make(shape, filters, dtype=np.float32):
    """Input with a mean, kernel, scale, offset, and gradient of the output."""
    x = (draw(0, *shape) + np.linspace(-1, 2, shape[-1], dtype=np.float32)).astype(
        dtype
    )
    kernel = draw(1, shape[-1], filters) / np.sqrt(np.float32(shape[-1]))
    scale, bias = draw(2, filters), draw(3, filters)
    return x, kernel, scale, bias, draw(4, *shape[:-1], filters, dtype=dtype)


def by_definition(x, kernel, scale, bias, g, num_groups):
    """In float64: output, mean, variance, and the four gradients of sum(output g)."""
    x, kernel, scale, bias, g = (np.float64(a) for a in (x, kernel, scale, bias, g))
    pixels = x.reshape(num_groups, -1, x.shape[-1])
    g = g.reshape(num_groups, -1, g.shape[-1])
    y = pixels @ kernel
    mean, var = y.mean(1, keepdims=True), y.var(1, keepdims=True)
    std = np.sqrt(var + EPSILON)
    normal = (y - mean) / std
    along = (g * normal).mean(1, keepdims=True)
    to_y = scale / std * (g - g.mean(1, keepdims=True) - normal * along)
    return (
        (normal * scale + bias).reshape(*x.shape[:-1], -1),
        mean[:, 0],
        var[:, 0],
        (to_y @ kernel.T).reshape(x.shape),
        np.einsum("gpk,gpc->kc", pixels, to_y),
        (g * normal).sum((0, 1)),
        g.sum((0, 1)),
    )


def ours(x, kernel, scale, bias, g, num_groups):
    def function(product, scale, bias):
        return pointwise.normalize(product, scale, bias, num_groups, EPSILON)

    (y, moments), pull = jax.vjp(function, Pointwise(x, kernel), scale, bias)
    nothing = jax.tree.map(jnp.zeros_like, moments)
    product, *others = pull((g, nothing))
    return y, *moments, *product, *others


def standard(x, kernel, scale, bias, g, num_groups):
    """A convolution, and BatchNorm as other layers have it."""
    norm = BatchNorm(num_groups=num_groups, dtype=x.dtype)

    def function(x, kernel, scale, bias):
        y = jnp.einsum("nhwk,kc->nhwc", x, kernel.astype(x.dtype))
        stats = {"mean": jnp.zeros(len(scale)), "var": jnp.ones(len(scale))}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return norm.apply(variables, y, mutable=["batch_stats"])[0]

    y, pull = jax.vjp(function, x, kernel, scale, bias)
    return y, None, None, *pull(g)


NAMES = ("y", "mean", "var", "to_x", "to_kernel", "to_scale", "to_bias")


def errors(got, want):
    """The largest difference of each array, as a share of its largest value."""
    return {
        name: np.abs(np.float64(a) - b).max() / np.abs(b).max()
        for name, a, b in zip(NAMES, got, want, strict=True)
        if a is not None
    }


@pytest.mark.parametrize(
    ("shape", "filters", "num_groups"),
    first(1, [((6, 3, 4, 5), 7, 3), ((6, 5, 5, 8), 32, 1), ((8, 1, 1, 3), 16, 2)]),
)
def test_values_and_gradients_are_those_of_the_equation(shape, filters, num_groups):
    inputs = make(shape, filters)
    found = errors(ours(*inputs, num_groups), by_definition(*inputs, num_groups))
    assert max(found.values()) < 5e-6, found


@pytest.mark.slow
def test_bfloat16_rounds_no_more_than_the_usual_form():
    inputs = make((16, 8, 8, 16), 64, dtype=jnp.bfloat16)
    # The kernel is rounded in both.
    kernel = jnp.asarray(inputs[1]).astype(jnp.bfloat16).astype(jnp.float32)
    inputs = (inputs[0], np.asarray(kernel), *inputs[2:])
    want = by_definition(*inputs, 1)
    found, usual = errors(ours(*inputs, 1), want), errors(standard(*inputs, 1), want)
    assert found["y"] < 1.2 * usual["y"]
    for name in ("to_x", "to_kernel", "to_scale", "to_bias"):
        assert found[name] < 1.5 * usual[name] + 1e-6, (name, found, usual)


def test_nothing_as_wide_as_the_output_is_kept():
    x, kernel, scale, bias, _ = make((4, 6, 6, 8), 32)
    _, saved = pointwise._forward(Pointwise(x, kernel), scale, bias, 1, EPSILON)
    assert max(leaf.size for leaf in jax.tree.leaves(saved)) == x.size


def test_rematerialisation_may_keep_the_covariance():
    x, kernel, scale, bias, g = make((4, 6, 6, 8), 32)

    def flops(level):
        def loss(x):
            y, _ = pointwise.normalize(Pointwise(x, kernel), scale, bias, 1, EPSILON)
            return jnp.sum(y * g)

        again = jax.checkpoint(loss, policy=resnet._POLICIES[level])
        return arithmetic.flops(jax.make_jaxpr(jax.grad(again))(x).jaxpr)

    # Sums of the products of all pairs of channels over all pixels.
    assert flops("blocks") - flops("wide") == 2 * x.size * x.shape[-1]


@pytest.mark.parametrize("num_groups", first(1, [4, 1]))
def test_eight_devices_are_one(num_groups):
    inputs = make((16, 3, 3, 4), 12)
    mesh = parallel.create_mesh(jax.devices()[:8])
    split, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    run = jax.jit(
        functools.partial(ours, num_groups=num_groups),
        in_shardings=(split, whole, whole, whole, split),
        out_shardings=whole,
    )
    for got, want in zip(run(*inputs), ours(*inputs, num_groups), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def run_block(pointwise_norm, projection, remat, num_groups=1):
    """Output, statistics and gradients of a bottleneck block."""
    block = blocks.ResidualBlock
    if remat != "none":
        policy = resnet._POLICIES[remat]
        block = resnet.nn.remat(block, policy=policy, static_argnums=(2,))
    lazy = functools.partial(
        pointwise.LazyConvolution,
        dtype=jnp.float32,
        kernel_init=resnet.KERNEL_INITS["truncated_normal"],
    )
    module = block(
        filters=4,
        stride=1,
        bottleneck=True,
        projection_shortcut=projection,
        sk_ratio=0.0,
        se_ratio=0.0,
        convolution=functools.partial(
            resnet._convolution,
            dtype=jnp.float32,
            kernel_init=resnet.KERNEL_INITS["truncated_normal"],
            gradient_dtype="float32",
        ),
        norm=functools.partial(BatchNorm, num_groups=num_groups),
        lazy_convolution=lazy if pointwise_norm else None,
    )
    x = jnp.asarray(draw(5, 8, 4, 4, 16))
    variables = module.init(jax.random.key(0), x, True)
    # The last scale is 0 at the start, behind which gradients are 0.
    params = jax.tree.map(lambda p: jnp.where(p == 0, 0.5, p), variables["params"])

    def loss(params, x):
        variables_now = {**variables, "params": params}
        y, state = module.apply(variables_now, x, True, mutable=["batch_stats"])
        return jnp.sum(y * draw(6, *y.shape)), (y, state["batch_stats"])

    gradients, aux = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    return gradients, aux


@pytest.mark.slow
@pytest.mark.parametrize(
    ("projection", "remat", "num_groups"),
    [(True, "none", 2), (False, "none", 1), (False, "wide", 1), (True, "blocks", 1)],
)
def test_a_block_is_the_same_with_either_form(projection, remat, num_groups):
    one = run_block(True, projection, remat, num_groups)
    other = run_block(False, projection, "none", num_groups)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-7)


@pytest.mark.parametrize(
    ("platform", "expected"), [("tpu", True), ("cpu", False), ("gpu", False)]
)
def test_the_form_is_that_of_the_devices(platform, expected):
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(devices=np.array([device]), size=1)
    config = smoke.get_config()
    settings = build.execution_settings(config, mesh)
    assert settings["pointwise_norm"] is expected
