"""Encoders: sizes against Google's, settings, dtypes, fresh values."""

import functools
import math
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_weights
from cases import first
from fidelity import PUBLISHED

from simclr_jax.models import create_encoder, create_projection_head

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
IMAGES = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
SELECTIVE = {"depth": 50, "sk_ratio": 0.0625, "se_ratio": 0.25}
# Millions of parameters of SimCLRv2's encoders: depth, width, selective kernels?
MILLIONS = {
    (50, 1, False): 24,
    (50, 1, True): 35,
    (50, 2, False): 94,
    (50, 2, True): 140,
    (101, 1, False): 43,
    (101, 1, True): 65,
    (101, 2, False): 170,
    (101, 2, True): 257,
    (152, 1, False): 58,
    (152, 1, True): 89,
    (152, 2, False): 233,
    (152, 2, True): 354,
    (152, 3, True): 795,
}


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shapes(module, x=None):
    """Shapes of a module's variables and of its output, without computing any."""
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32) if x is None else x
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    return variables, output


def in_stem(module, _):
    return module.path[:1] == ("stem",)


def encoded(variables=None, images=IMAGES, **settings):
    """An encoder's h of two images, with weights by the formula if not given."""
    encoder = create_encoder(**{"depth": 10, "width": 0.1, **settings})
    if variables is None:
        variables = by_formula(jax.eval_shape(encoder.init, jax.random.key(0), images))
    return jax.jit(encoder.apply)(variables, images), variables


@pytest.fixture(scope="module")
def torch_style():
    return encoded()[0]


def fresh_parameters(encoder, wanted):
    """Initial values of the parameters whose path is wanted, drawing only those."""

    def init(key):
        params = encoder.init(key, jnp.zeros((1, 32, 32, 3)))["params"]
        flat = flax.traverse_util.flatten_dict(params)
        return {path: leaf for path, leaf in flat.items() if wanted(path)}

    params = jax.jit(lambda key: {"/".join(p): v for p, v in init(key).items()})
    return params(jax.random.key(0))


def by_formula(variables):
    """The formula's values for an encoder's {'params': ..., 'batch_stats': ...}."""
    return {
        kind: reference_weights.fill({"encoder": tree})["encoder"]
        for kind, tree in variables.items()
    }


def assert_near(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


@functools.cache
def sizes(depth, width, sk_ratio, stem):
    """Width of h, and numbers of parameters, statistics and kernels, of an encoder."""
    encoder = create_encoder(
        depth=depth,
        width=width,
        sk_ratio=sk_ratio,
        stem=stem,
        first_group_projection=True,
    )
    variables, h = shapes(encoder)
    assert h.shape == (2, encoder.feature_width)
    kernels = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    return {
        "feature_width": encoder.feature_width,
        "encoder_trainable": count(variables["params"]),
        "encoder_nontrainable_bn_stats": count(variables["batch_stats"]),
        "n_conv_kernels": sum(name.endswith("kernel") for name in kernels),
    }


@functools.cache
def head_size(num_layers, width):
    h = jax.ShapeDtypeStruct((2, width), jnp.float32)
    variables, _ = shapes(create_projection_head(num_layers=num_layers), h)
    return count(variables["params"])


@pytest.mark.parametrize(
    "row",
    [
        row if row in (0, 8, 16) else pytest.param(row, marks=pytest.mark.slow)
        for row in range(40)
    ],
)
def test_sizes_match_google(fidelity, row):
    with np.load(GOLDEN / "resnet_params.npz") as columns:
        want = {key: columns[key][row].item() for key in columns}
    *settings, stem = (want.pop(k) for k in ("depth", "width", "sk_ratio", "stem"))
    got = sizes(*settings, {"cifar3x3": "cifar"}.get(stem, stem))
    width = got["feature_width"]
    heads = {f"head{layers}_trainable": head_size(layers, width) for layers in (2, 3)}
    got = {**got, **heads}
    assert got.keys() == want.keys()
    fidelity(
        "parameter counts of encoders and heads",
        list(got.values()),
        [want[key] for key in got],
        err_msg=f"{settings} {stem}: {list(got)}",
    )


@pytest.mark.parametrize(
    ("depth", "width", "selective"),
    [
        row if row == (50, 1, False) else pytest.param(*row, marks=pytest.mark.slow)
        for row in MILLIONS
    ],
)
def test_sizes_match_the_published_ones(fidelity, depth, width, selective):
    """Parameters and running statistics, rounded."""
    got = sizes(depth, width, 0.0625 if selective else 0.0, "imagenet")
    total = got["encoder_trainable"] + got["encoder_nontrainable_bn_stats"]
    fidelity(
        "millions of parameters of encoders",
        round(total / 1e6),
        MILLIONS[depth, width, selective],
        source=PUBLISHED,
    )


@pytest.mark.parametrize("width", first(1, [4, 3]))
def test_sizes_of_wider_encoders(width):
    """Without selective kernels a w^2 + b w parameters, as those of widths 1 and 2."""
    one, two, wide = (
        sizes(50, w, 0.0, "imagenet")["encoder_trainable"] for w in (1, 2, width)
    )
    squared, linear = (two - 2 * one) // 2, (4 * one - two) // 2
    assert wide == squared * width**2 + linear * width


@pytest.mark.parametrize(
    ("depth", "size"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)]
)
def test_sizes_match_torchvision(depth, size):
    variables, _ = shapes(create_encoder(depth=depth))
    assert count(variables["params"]) == size


@pytest.mark.slow
def test_resnet_200_has_200_layers():
    """Convolutions on the main path and the classifier that is not here."""
    variables, _ = shapes(create_encoder(depth=200))
    names = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = [n for n in names if n.endswith("kernel") and "shortcut" not in n]
    assert len(kernels) + 1 == 200


@pytest.mark.parametrize(
    ("depth", "width", "features"),
    first(
        2,
        [
            (18, 0.5, 256),
            (18, 1e-3, 8),
            (18, 0.25, 128),
            (50, 0.5, 1024),
            (50, 1.5, 3072),
        ],
    ),
)
def test_fractional_widths(depth, width, features):
    encoder = create_encoder(depth=depth, width=width)
    variables, h = shapes(encoder)
    assert h.shape[1] == encoder.feature_width == features
    stem = variables["params"]["stem"]["conv1"]["kernel"]
    assert stem.shape[3] == features // (8 if depth == 18 else 32)


@pytest.mark.parametrize(("stem", "factor"), [("imagenet", 32), ("cifar", 8)])
def test_total_stride(stem, factor):
    encoder = create_encoder(depth=18, width=0.1, stem=stem)
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), x)
    _, state = jax.eval_shape(
        lambda v, x: encoder.apply(v, x, capture_intermediates=True), variables, x
    )
    last = state["intermediates"]["group4"]["__call__"][0]
    assert last.shape[1:3] == (64 // factor, 64 // factor)


@pytest.mark.parametrize(("padding", "first"), first(1, [("same", 0), ("torch", -1)]))
def test_max_pool_windows(padding, first):
    """Window i begins at pixel 2i - 1, or at pixel 2i as TensorFlow has it."""
    encoder = create_encoder(depth=10, width=0.1, max_pool_padding=padding)
    variables, _ = shapes(encoder)
    apply = functools.partial(encoder.apply, capture_intermediates=in_stem)
    # Not under `jit`, where the two may round the BatchNorm that both see differently.
    _, state = apply(by_formula(variables), IMAGES)
    stem = state["intermediates"]["stem"]
    before = np.maximum(stem["bn1"]["__call__"][0], 0)
    windows = [np.arange(2 * i + first, 2 * i + first + 3) for i in range(8)]
    windows = [w[(w >= 0) & (w < 16)] for w in windows]
    want = [[before[:, r][:, :, c].max((1, 2)) for c in windows] for r in windows]
    np.testing.assert_array_equal(stem["__call__"][0], np.transpose(want, (2, 0, 1, 3)))


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_basic_blocks_have_no_selective_kernels(stem):
    """`sk_ratio` changes the stem and, by a pooling only, the shortcuts."""
    plain, with_sk = (
        shapes(create_encoder(depth=18, stem=stem, sk_ratio=ratio))[0]["params"]
        for ratio in (0.0, 0.0625)
    )
    assert set(plain["stem"]) == {"conv1", "bn1"}
    deep = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
    assert set(with_sk["stem"]) == (deep if stem == "imagenet" else {"conv1", "bn1"})
    del plain["stem"], with_sk["stem"]
    assert plain == with_sk


@pytest.mark.slow
def test_imagenet_normalization_takes_out_mean_and_deviation():
    mean, std = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    got, variables = encoded(normalization="imagenet")
    want, _ = encoded(variables, (IMAGES - mean) / std)
    assert_near(got, want, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "settings", [{"depth": 18}, pytest.param(SELECTIVE, marks=pytest.mark.slow)]
)
def test_only_the_computation_has_the_dtype(settings, dtype):
    encoder = create_encoder(**settings, dtype=dtype)
    variables, _ = shapes(encoder)

    def train(variables, images):
        mutable = ["batch_stats", "intermediates"]
        return encoder.apply(
            variables, images, train=True, mutable=mutable, capture_intermediates=True
        )

    h, state = jax.eval_shape(train, variables, jnp.zeros((2, 32, 32, 3)))
    arrays = jax.tree.leaves([h, variables, state["batch_stats"]])
    assert all(leaf.dtype == jnp.float32 for leaf in arrays)
    inside = state["intermediates"]
    flat = flax.traverse_util.flatten_dict(inside).items()
    calls = {path[:-1]: leaf for path, (leaf,) in flat if path[-1] == "__call__"}
    assert {leaf.dtype for path, leaf in calls.items() if path} == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({**SELECTIVE, "width": 0.1}, marks=pytest.mark.slow)],
)
def test_bfloat16_is_close_to_float32(settings):
    want, variables = encoded(stem="cifar", **settings)
    got, _ = encoded(variables, stem="cifar", dtype=jnp.bfloat16, **settings)
    assert_near(got, want, 0.03)
    assert not np.array_equal(got, want)


@pytest.mark.parametrize(
    ("depth", "sk_ratio", "last"),
    first(1, [(18, 0.0, "bn2"), (50, 0.0625, "bn3")]),
)
def test_blocks_start_as_their_shortcut(depth, sk_ratio, last):
    encoder = create_encoder(depth=depth, width=0.1, sk_ratio=sk_ratio)
    scales = fresh_parameters(encoder, lambda path: path[-1] == "scale")
    blocks = {name for name in scales if name.startswith("group")}
    ends = {name for name in blocks if name.split("/")[2:-1] == [last]}
    assert len(ends) == (8 if depth == 18 else 16)
    for name, scale in scales.items():
        assert (scale == (0 if name in ends else 1)).all(), name


@pytest.mark.parametrize("depth", first(1, [18, 50]))
def test_blocks_may_start_with_their_residual(depth):
    encoder = create_encoder(depth=depth, width=0.1, zero_init_residual=False)
    scales = fresh_parameters(encoder, lambda path: path[-1] == "scale")
    assert len(scales) == {18: 20, 50: 53}[depth]
    for name, scale in scales.items():
        assert (scale == 1).all(), name


@pytest.mark.parametrize(
    ("kernel_init", "gain", "fan"), [("truncated_normal", 1, 2), ("he_normal", 2, 3)]
)
def test_kernels_have_the_spread_of_their_initialiser(kernel_init, gain, fan):
    encoder = create_encoder(depth=18, kernel_init=kernel_init)
    name = ("group2", "block1", "conv1", "kernel")  # 64 inputs, 128 outputs
    (kernel,) = fresh_parameters(encoder, lambda path: path == name).values()
    want = math.sqrt(gain / (9 * kernel.shape[fan]))
    assert np.std(kernel) == pytest.approx(want, rel=0.02)
    if kernel_init == "truncated_normal":
        # Cut at two standard deviations of the normal, which is then widened.
        assert np.abs(kernel).max() < 2 / 0.87962566 * want


@pytest.mark.parametrize(
    "change",
    first(
        2,
        [
            {"stem": "cifar"},
            {"max_pool_padding": "same"},
            {"first_group_projection": True},
            {"sk_ratio": 0.0625},
            {"se_ratio": 0.25},
            {"normalization": "imagenet"},
        ],
    ),
)
def test_settings_change_the_representation(torch_style, change):
    before = torch_style
    after, _ = encoded(**change)
    assert before.shape == after.shape
    assert np.abs(before - after).max() > 1e-3 * np.abs(before).max()


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 20},
        {"width": 0},
        {"width": -1},
        {"width": math.nan},
        {"sk_ratio": -1},
        {"sk_ratio": 1.5},
        {"se_ratio": -0.5},
        {"se_ratio": math.nan},
        {"stem": "cifar3x3"},
        {"max_pool_padding": "valid"},
        {"normalization": "zero"},
        {"kernel_init": "zeros"},
    ],
)
def test_errors_name_the_argument(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be"):
        create_encoder(**{"depth": 18, **change})
