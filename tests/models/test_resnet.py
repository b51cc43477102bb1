"""Encoders against Google's: sizes, forward passes, running statistics."""

import functools
import math
import pathlib
import zlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models import SimCLR, create_encoder, create_projection_head

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TAGS = {
    "r18_cifar": {"depth": 18, "stem": "cifar"},
    "r50_imagenet": {"depth": 50, "stem": "imagenet"},
}
# Our leaves and parts by Google's names.
NAMES = {
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
    "head": "proj_head",
    "probe": "linear_head",
}


def load(name):
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shapes(module, x=None):
    """Shapes of a module's variables and of its output, without computing any."""
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32) if x is None else x
    output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    return variables, output


def in_stem(module, _):
    return module.path[:1] == ("stem",)


def encoded(variables=None, **settings):
    """An encoder's h of two images, with weights by the formula if not given."""
    encoder = create_encoder(depth=18, width=0.1, **settings)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
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


def google_name(path):
    part, *names, leaf = path
    if part == "probe":
        return f"linear_head/{leaf}"
    prefix = [] if part == "encoder" else [NAMES[part]]
    return "/".join([*prefix, *names, NAMES.get(leaf, leaf)])


def hashed(name, shape):
    """Numbers in (-1, 1) from hashes of a variable's name and positions in it."""
    t = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B9)
    t += np.uint32(zlib.crc32(name.encode()))
    t ^= t >> 16
    t *= np.uint32(0x85EBCA6B)
    t ^= t >> 13
    t *= np.uint32(0xC2B2AE35)
    t ^= t >> 16
    return (2 * ((t + 0.5) / 2**32) - 1).reshape(shape)


def formula(path, leaf):
    """The value that the recorded forward passes give to a variable."""
    name = google_name(path)
    s = hashed(name, leaf.shape)
    spread = math.sqrt(3 * 2 / math.prod(leaf.shape[:-1]))
    centre, factor = {
        "kernel": (0, spread),
        "bias": (0, 0.1),
        "gamma": (0.7, 0.3),
        "beta": (0, 0.1),
        "moving_mean": (0, 0.1),
        "moving_variance": (1, 0.5),
    }[name.rpartition("/")[2]]
    return (centre + factor * s).astype(np.float32)


def by_formula(variables):
    """The formula's values for an encoder's {'params': ..., 'batch_stats': ...}."""
    flat = flax.traverse_util.flatten_dict(variables)
    return flax.traverse_util.unflatten_dict(
        {path: formula(("encoder", *path[1:]), leaf) for path, leaf in flat.items()}
    )


@pytest.fixture(scope="module", params=TAGS)
def forward(request):
    """Golden arrays, outputs in both modes and the statistics after one update."""
    golden = load(f"resnet_forward_{request.param}.npz")
    encoder = create_encoder(
        **TAGS[request.param], first_group_projection=True, max_pool_padding="same"
    )
    model = SimCLR(encoder, create_projection_head(), num_classes=10)
    trees = jax.eval_shape(model.init, jax.random.key(0), golden["input"])
    trees = [flax.traverse_util.flatten_dict(tree) for tree in trees]
    trees = [{path: formula(path, leaf) for path, leaf in t.items()} for t in trees]
    params, stats = (flax.traverse_util.unflatten_dict(tree) for tree in trees)
    apply = jax.jit(model.apply, static_argnames="train")
    outputs = {}
    outputs["eval"], _ = apply(params, stats, golden["input"], train=False)
    outputs["train"], updated = apply(params, stats, golden["input"], train=True)
    updated = {
        google_name(path): leaf
        for path, leaf in flax.traverse_util.flatten_dict(updated).items()
    }
    return golden, outputs, updated


def assert_near(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


def test_hash_has_the_published_values():
    got = hashed("stem/conv1/kernel", (4,))
    want = [0.12086208, 0.52061238, -0.30510260, 0.14659803]
    np.testing.assert_allclose(got, want, atol=1e-8)
    got = hashed("group1/block1/bn1/gamma", (4,))
    want = [-0.52809970, -0.66525672, 0.63633445, 0.01913999]
    np.testing.assert_allclose(got, want, atol=1e-8)


@pytest.mark.parametrize("output", ["h", "z", "logits"])
def test_eval_forward_matches_google(forward, output):
    golden, outputs, _ = forward
    key = {"logits": "logits_sup"}.get(output, output)
    assert_near(getattr(outputs["eval"], output), golden[f"eval/{key}"], 1e-4)


@pytest.mark.parametrize("output", ["h", "logits"])
def test_train_forward_matches_google(forward, output):
    golden, outputs, _ = forward
    key = {"logits": "logits_sup"}.get(output, output)
    # ResNet-50 amplifies rounding: its recorded h is 1.5e-4 away from float64.
    tolerance = 3e-4 if golden["train/h"].shape[1] == 2048 else 1e-4
    assert_near(getattr(outputs["train"], output), golden[f"train/{key}"], tolerance)


def test_train_projection_matches_google(forward):
    """A batch of 8 through three more BatchNorms amplifies rounding errors."""
    golden, outputs, _ = forward
    np.testing.assert_allclose(outputs["train"].z, golden["train/z"], atol=1e-2)


def test_running_statistics_match_google(forward):
    golden, _, updated = forward
    prefix = "train/after_one_update/"
    wanted = [key for key in golden if key.startswith(prefix)]
    assert len(wanted) in (20, 24)
    for key in wanted:
        got = updated[key.removeprefix(prefix)]
        np.testing.assert_allclose(got, golden[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("row", range(20))
def test_sizes_match_google(row):
    want = {key: column[row] for key, column in load("resnet_params.npz").items()}
    encoder = create_encoder(
        depth=int(want["depth"]),
        width=int(want["width"]),
        stem={"cifar3x3": "cifar"}.get(str(want["stem"]), str(want["stem"])),
        first_group_projection=True,
    )
    variables, h = shapes(encoder)
    assert h.shape == (2, want["feature_width"])
    assert encoder.feature_width == want["feature_width"]
    assert count(variables["params"]) == want["encoder_trainable"]
    assert count(variables["batch_stats"]) == want["encoder_nontrainable_bn_stats"]
    kernels = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    assert sum(name.endswith("kernel") for name in kernels) == want["n_conv_kernels"]
    for num_layers in (2, 3):
        head, _ = shapes(create_projection_head(num_layers=num_layers), h)
        assert count(head["params"]) == want[f"head{num_layers}_trainable"]


@pytest.mark.parametrize(
    ("depth", "size"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)]
)
def test_sizes_match_torchvision(depth, size):
    variables, _ = shapes(create_encoder(depth=depth))
    assert count(variables["params"]) == size


def test_resnet_200_has_200_layers():
    """Convolutions on the main path and the classifier that is not here."""
    variables, _ = shapes(create_encoder(depth=200))
    names = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = [n for n in names if n.endswith("kernel") and "shortcut" not in n]
    assert len(kernels) + 1 == 200


@pytest.mark.parametrize(
    ("depth", "width", "features"),
    [(18, 0.25, 128), (18, 0.5, 256), (50, 0.5, 1024), (50, 1.5, 3072), (18, 1e-3, 8)],
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


@pytest.mark.parametrize(("padding", "first"), [("torch", -1), ("same", 0)])
def test_max_pool_windows(padding, first):
    """Window i begins at pixel 2i - 1, or at pixel 2i as TensorFlow has it."""
    encoder = create_encoder(depth=18, width=0.1, max_pool_padding=padding)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    variables, _ = shapes(encoder, images)
    apply = functools.partial(encoder.apply, capture_intermediates=in_stem)
    _, state = jax.jit(apply)(by_formula(variables), images)
    stem = state["intermediates"]["stem"]
    before = np.maximum(stem["bn1"]["__call__"][0], 0)
    windows = [np.arange(2 * i + first, 2 * i + first + 3) for i in range(8)]
    windows = [w[(w >= 0) & (w < 16)] for w in windows]
    want = [[before[:, r][:, :, c].max((1, 2)) for c in windows] for r in windows]
    np.testing.assert_array_equal(stem["__call__"][0], np.transpose(want, (2, 0, 1, 3)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_the_computation_has_the_dtype(dtype):
    encoder = create_encoder(depth=18, dtype=dtype)
    variables, _ = shapes(encoder)

    def train(variables, images):
        mutable = ["batch_stats", "intermediates"]
        return encoder.apply(
            variables, images, train=True, mutable=mutable, capture_intermediates=True
        )

    h, state = jax.eval_shape(train, variables, jnp.zeros((2, 32, 32, 3)))
    kept = jax.tree.leaves([h, variables, state["batch_stats"]])
    assert all(leaf.dtype == jnp.float32 for leaf in kept)
    inside = state["intermediates"]
    for module in (inside["stem"], inside["group4"]["block2"]["bn2"]):
        assert module["__call__"][0].dtype == dtype


def test_bfloat16_is_close_to_float32():
    want, variables = encoded(stem="cifar")
    got, _ = encoded(variables, stem="cifar", dtype=jnp.bfloat16)
    assert_near(got, want, 0.03)
    assert not np.array_equal(got, want)


@pytest.mark.parametrize(("depth", "last"), [(18, "bn2"), (50, "bn3")])
def test_blocks_start_as_their_shortcut(depth, last):
    encoder = create_encoder(depth=depth, width=0.1)
    scales = fresh_parameters(encoder, lambda path: path[-1] == "scale")
    ends = {name for name in scales if name.split("/")[-2] == last}
    assert len(ends) == (8 if depth == 18 else 16)
    for name, scale in scales.items():
        assert (scale == (0 if name in ends else 1)).all(), name


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
    [{"stem": "cifar"}, {"max_pool_padding": "same"}, {"first_group_projection": True}],
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
        {"stem": "cifar3x3"},
        {"max_pool_padding": "valid"},
        {"kernel_init": "zeros"},
    ],
)
def test_errors_name_the_argument(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be"):
        create_encoder(**{"depth": 18, **change})
