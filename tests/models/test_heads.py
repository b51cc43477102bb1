"""Projection heads, and the model that joins encoder, head and probe."""

import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_weights
from fidelity import EQUATIONS

from simclr_jax.models import SimCLR, create_encoder, create_projection_head

IMAGES = np.random.default_rng(0).random((4, 16, 16, 3), np.float32)


def leaves(tree):
    """Shapes by path, as 'dense1/kernel'."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


def head_shapes(width=32, **settings):
    head = create_projection_head(**settings)
    h = jax.ShapeDtypeStruct((4, width), jnp.float32)
    variables = jax.eval_shape(head.init, jax.random.key(0), h)
    return variables, jax.eval_shape(head.apply, variables, h)


@pytest.mark.parametrize(
    ("kernel_init", "width", "std"),
    [
        ("normal", 300, 0.01),
        # PyTorch's bound of a linear layer with so many inputs, over sqrt(3).
        ("uniform", 300, 1 / math.sqrt(3 * 300)),
        ("uniform", 75, 1 / math.sqrt(3 * 75)),
    ],
)
def test_kernels_have_the_spread_of_their_initialiser(kernel_init, width, std):
    head = create_projection_head(kernel_init=kernel_init, num_layers=2)
    params = head.init(jax.random.key(0), jnp.zeros((2, width)))["params"]
    for name in ("dense1", "dense2"):
        kernel = np.asarray(params[name]["kernel"])
        assert np.std(kernel) == pytest.approx(std, rel=0.02)
        if kernel_init == "uniform":
            bound = 1 / math.sqrt(width)
            assert 0.99 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)


def test_an_unknown_initialiser_is_refused():
    with pytest.raises(ValueError, match=r"^kernel_init='torch': must"):
        create_projection_head(kernel_init="torch")


def in_training(head, variables, h):
    return jax.jit(lambda v, h: head.apply(v, h, train=True, mutable=["batch_stats"]))(
        variables, h
    )


def small_model(**settings):
    encoder = create_encoder(depth=10, width=0.1, stem="cifar")
    return SimCLR(encoder, create_projection_head(output_dim=8, **settings), 5)


@pytest.fixture(scope="module")
def trained():
    """A small model, its first parameters and statistics, and its jitted apply."""
    model = small_model()
    key = jax.random.key(0, impl="rbg")  # compiles in a fraction of the time
    params, stats = jax.jit(model.init)(key, IMAGES)
    return model, params, stats, jax.jit(model.apply, static_argnames="train")


@pytest.fixture(scope="module")
def gradients(trained):
    """Of a loss on the probe's logits, and of one on the projections."""
    _, params, stats, apply = trained

    @jax.jit
    @jax.grad
    def gradient(params, probe_share):
        outputs, _ = apply(params, stats, IMAGES, train=False)
        probe_loss = jnp.sum(jax.nn.log_softmax(outputs.logits)[:, 0])
        return probe_share * probe_loss + (1 - probe_share) * jnp.sum(outputs.z**3)

    return {"probe": gradient(params, 1.0), "projection": gradient(params, 0.0)}


def test_no_head_returns_h():
    head = create_projection_head(kind="none")
    h = jnp.arange(6.0).reshape(2, 3)
    variables = head.init(jax.random.key(0), h)
    assert not variables
    np.testing.assert_array_equal(head.apply(variables, h), h)


def test_linear_head_has_one_layer():
    variables, z = head_shapes(kind="linear", output_dim=8, num_layers=3)
    assert leaves(variables["params"]) == {"dense1/kernel": (32, 8), "bn1/scale": (8,)}
    assert z.shape == (4, 8)


@pytest.mark.parametrize(("hidden_dim", "hidden"), [(None, 32), (20, 20)])
def test_nonlinear_head_has_hidden_layers_as_wide_as_h(hidden_dim, hidden):
    variables, z = head_shapes(num_layers=3, output_dim=8, hidden_dim=hidden_dim)
    assert leaves(variables["params"]) == {
        "dense1/kernel": (32, hidden),
        "bn1/scale": (hidden,),
        "bn1/bias": (hidden,),
        "dense2/kernel": (hidden, hidden),
        "bn2/scale": (hidden,),
        "bn2/bias": (hidden,),
        "dense3/kernel": (hidden, 8),
        "bn3/scale": (8,),
    }
    assert z.shape == (4, 8)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_only_the_last_batch_norm_has_no_offset(num_layers):
    variables, _ = head_shapes(num_layers=num_layers)
    names = leaves(variables["params"])
    assert [f"bn{i}/bias" in names for i in range(1, num_layers + 1)] == [
        i < num_layers for i in range(1, num_layers + 1)
    ]
    assert not any(n.startswith("dense") and n.endswith("bias") for n in names)


def test_nonlinear_head_by_hand():
    head = create_projection_head(num_layers=2, output_dim=3)
    h = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    variables = jax.jit(head.init)(jax.random.key(0), h)
    variables["params"]["bn1"]["bias"] += 0.5

    def normalised(x):
        return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)

    params = jax.tree.map(np.asarray, variables["params"])
    hidden = np.maximum(normalised(h @ params["dense1"]["kernel"]) + 0.5, 0)
    want = normalised(hidden @ params["dense2"]["kernel"])
    z, _ = in_training(head, variables, h)
    np.testing.assert_allclose(z, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "num_layers"),
    [
        ({"kind": "none"}, 0),
        ({"kind": "linear"}, 1),
        ({"num_layers": 1}, 1),
        ({"num_layers": 2}, 2),
        ({"num_layers": 3, "hidden_dim": 20}, 3),
    ],
)
def test_layers_from_h_to_z(fidelity, settings, num_layers):
    """[h, the hidden layers after their ReLU, z], in evaluation mode."""
    head = create_projection_head(output_dim=8, **settings)
    h = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    variables = {
        kind: reference_weights.fill({"head": tree})["head"]
        for kind, tree in jax.eval_shape(head.init, jax.random.key(0), h).items()
    }
    want = [np.float64(h)]
    for i in range(1, num_layers + 1):
        params, stats = variables["params"], variables["batch_stats"][f"bn{i}"]
        x = want[-1] @ params[f"dense{i}"]["kernel"]
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        x = x * params[f"bn{i}"]["scale"] + params[f"bn{i}"].get("bias", 0)
        want.append(x if i == num_layers else np.maximum(x, 0))
    got = head.apply(variables, h, method="layers")
    assert len(got) == len(want) == head.num_outputs
    np.testing.assert_array_equal(got[0], h)
    np.testing.assert_array_equal(got[-1], head.apply(variables, h))
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        fidelity(
            "projection head, every layer",
            a,
            b,
            source=EQUATIONS,
            of_largest=1e-5,
            err_msg=f"layer {i}",
        )


def test_kernels_start_small():
    head = create_projection_head(num_layers=1, output_dim=200)
    variables = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 100)))
    assert np.std(variables["params"]["dense1"]["kernel"]) == pytest.approx(0.01, 0.05)


def test_bfloat16_head_ends_in_float32():
    head = create_projection_head(dtype=jnp.bfloat16)
    h = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    variables = jax.jit(head.init)(jax.random.key(0), h)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    z, _ = in_training(head, variables, h)
    assert z.dtype == jnp.float32
    # Its digits too: no rounding to bfloat16 on the way.
    assert np.mean(z == z.astype(jnp.bfloat16)) < 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "mlp"},
        {"num_layers": 0},
        {"output_dim": 0},
        {"hidden_dim": 0},
        {"hidden_dim": -1},
    ],
)
def test_errors_name_the_argument(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be"):
        create_projection_head(**change)


def test_parts_of_the_model(trained):
    model, params, stats, apply = trained
    assert set(params) == {"encoder", "head", "probe"}
    assert set(stats) == {"encoder", "head"}
    outputs, _ = apply(params, stats, IMAGES, train=False)
    width = model.encoder.feature_width
    assert outputs.h.shape == (4, width)
    assert outputs.z.shape == (4, 8)
    assert outputs.logits.shape == (4, 5)
    assert leaves(params["probe"]) == {"kernel": (width, 5), "bias": (5,)}


def test_parts_without_parameters_are_absent():
    encoder = create_encoder(depth=18, width=0.1)
    model = SimCLR(encoder, create_projection_head(kind="none"))
    params, stats = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert set(params) == set(stats) == {"encoder"}
    apply = lambda p, s: model.apply(p, s, IMAGES, train=True)  # noqa: E731
    outputs, updated = jax.eval_shape(apply, params, stats)
    assert outputs.logits is None
    assert outputs.z.shape == outputs.h.shape
    assert set(updated) == {"encoder"}


def test_probe_does_not_shape_the_encoder(gradients):
    gradient = gradients["probe"]
    assert np.any(gradient["probe"]["kernel"])
    assert np.any(gradient["probe"]["bias"])
    for part in ("encoder", "head"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[part]))


def test_projection_does_shape_the_encoder(gradients):
    gradient = gradients["projection"]
    assert np.any(gradient["encoder"]["stem"]["conv1"]["kernel"])
    assert np.any(gradient["head"]["dense1"]["kernel"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["probe"]))


def test_evaluation_looks_at_each_image_alone(trained):
    _, params, stats, apply = trained
    before, same = apply(params, stats, IMAGES, train=False)
    jax.tree.map(np.testing.assert_array_equal, same, stats)
    after, _ = apply(params, stats, IMAGES[[0, 1, 1, 1]], train=False)
    for x, y in zip(before, after, strict=True):
        np.testing.assert_allclose(x[:2], y[:2], rtol=1e-5, atol=1e-7)


def test_training_looks_at_the_batch_and_moves_all_statistics(trained):
    _, params, stats, apply = trained
    before, updated = apply(params, stats, IMAGES, train=True)
    after, _ = apply(params, stats, IMAGES[[0, 1, 1, 1]], train=True)
    assert np.abs(before.h[:2] - after.h[:2]).max() > 1e-3
    assert jax.tree.structure(updated) == jax.tree.structure(stats)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updated, stats)
    assert all(jax.tree.leaves(moved))
    np.testing.assert_allclose(np.mean(before.z, axis=0), 0, atol=1e-4)


def test_momentum_is_the_share_that_is_kept():
    h = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32) + 2
    head = create_projection_head(num_layers=1, batch_norm_momentum=0.75)
    variables = jax.jit(head.init)(jax.random.key(0), h)
    _, updates = in_training(head, variables, h)
    x = h @ variables["params"]["dense1"]["kernel"]
    got = updates["batch_stats"]["bn1"]
    np.testing.assert_allclose(got["mean"], 0.25 * x.mean(axis=0), rtol=1e-4)
    want = 0.75 + 0.25 * np.var(x, axis=0)
    np.testing.assert_allclose(got["var"], want, rtol=1e-5)


def test_model_is_a_static_argument():
    assert hash(small_model()) == hash(small_model())
    assert small_model() == small_model()
    assert small_model() != small_model(num_layers=2)
