"""LARS against Google's optimiser; roles and masks of all optimisers."""

import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax.models import SimCLR, create_encoder, create_projection_head
from simclr_jax.optim import adamw, lars, parameter_role, role_table, sgd

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
WEIGHT_DECAY = {
    "wd1e-6": 1e-6,
    "wd1e-4": 1e-4,
    "wd0.01": 0.01,
    "wd1e-4_lrvar": 1e-4,
    "wd1e-4_nesterov": 1e-4,
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "lars.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def simclr_params():
    model = SimCLR(create_encoder(depth=50), create_projection_head(), num_classes=10)
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(model.init, jax.random.key(0), images)[0]


def tree(golden, values):
    names = (str(name) for name in golden["names"])
    return flax.traverse_util.unflatten_dict(
        dict(zip(names, values, strict=True)), sep="/"
    )


def roles(params):
    """Role by path, as 'head/bn1/scale'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): parameter_role(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }


def one_step(optimizer, params, gradients):
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("config", WEIGHT_DECAY)
def test_six_steps_match_google(golden, config, fidelity):
    rates = jnp.asarray(golden[f"{config}/lrs"])
    optimizer = lars(
        (lambda step: rates[step]) if config.endswith("lrvar") else float(rates[0]),
        weight_decay=WEIGHT_DECAY[config],
        nesterov=config.endswith("nesterov"),
    )
    params = tree(golden, [golden[f"init/{j}"] for j in range(9)])
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(6):
        gradients = tree(golden, [golden[f"grads/{j}"][step] for j in range(9)])
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        got = flax.traverse_util.flatten_dict(params, sep="/")
        for j, name in enumerate(golden["names"]):
            fidelity(
                f"LARS, {config}: parameters after each of 6 steps",
                got[name],
                golden[f"{config}/params/{j}"][step],
                rtol=1e-5,
                atol=1e-7,
                err_msg=f"{name} after step {step + 1}",
            )


def test_values_and_state_are_those_of_optax():
    """Checkpoints hold the state. A norm of 0, of weights or updates, means 1."""
    rng = np.random.default_rng(0)
    shapes = {"usual": (3, 3, 8, 16), "zero": (8, 4), "no_gradient": (8, 4)}

    def drawn():
        return {n: {"kernel": jnp.float32(rng.normal(size=shapes[n]))} for n in shapes}

    params = drawn() | {"bn": {"scale": jnp.ones(16)}}
    params["zero"] = jax.tree.map(jnp.zeros_like, params["zero"])
    kernels = {**dict.fromkeys(shapes, True), "bn": False}
    settings = {"momentum": 0.9, "nesterov": True, "trust_coefficient": 0.01}
    optimizers = [
        lars(lambda step: 0.1 + step, weight_decay=0.0, **settings),
        optax.lars(lambda step: 0.1 + step, trust_ratio_mask=kernels, **settings),
    ]
    states = [optimizer.init(params) for optimizer in optimizers]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for _ in range(3):
        gradients = drawn() | {"bn": {"scale": jnp.float32(rng.normal(size=16))}}
        gradients["no_gradient"] = jax.tree.map(
            jnp.zeros_like, gradients["no_gradient"]
        )
        steps = [
            optimizer.update(gradients, state, params)
            for optimizer, state in zip(optimizers, states, strict=True)
        ]
        jax.tree.map(np.testing.assert_array_equal, *steps)
        states = [state for _, state in steps]


def test_roles_of_google_names(golden):
    is_kernel = {name: role == "kernel" for name, role in roles(
        tree(golden, golden["excluded"])).items()}  # fmt: skip
    want = dict(zip(map(str, golden["names"]), ~golden["excluded"], strict=True))
    assert is_kernel == want


def test_two_steps_by_hand():
    """|w| = 5, u = g + 0.1 w = (0.3, 0.8) + (0.3, 0.4) = (0.6, 1.2), |u|^2 = 1.8."""
    params = {"dense": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([1.0])}}
    gradients = {"dense": {"kernel": jnp.array([0.3, 0.8]), "bias": jnp.array([0.5])}}
    optimizer = lars(0.2, weight_decay=0.1, momentum=0.5, trust_coefficient=0.01)
    state = optimizer.init(params)
    updates, state = optimizer.update(gradients, state, params)
    trust = 0.01 * 5 / np.sqrt(1.8)
    first = 0.2 * trust * np.array([0.6, 1.2])
    np.testing.assert_allclose(updates["dense"]["kernel"], -first, rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["bias"], -0.2 * 0.5, rtol=1e-6)

    params = optax.apply_updates(params, updates)
    zero = jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = optimizer.update(zero, state, params)
    # Only the decay is left: the trust ratio makes it 0.01 of the weights' length.
    want = 0.5 * first + 0.2 * 0.01 * (np.array([3, 4]) - first)
    np.testing.assert_allclose(updates["dense"]["kernel"], -want, rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["bias"], -0.5 * 0.1, rtol=1e-6)


def test_roles_of_a_model(simclr_params):
    got = roles(simclr_params)
    assert got["encoder/stem/conv1/kernel"] == "kernel"
    assert got["encoder/group1/block1/shortcut/conv/kernel"] == "kernel"
    assert got["encoder/group4/block3/bn3/scale"] == "norm"
    assert got["encoder/group4/block3/bn3/bias"] == "bias"
    assert got["head/dense3/kernel"] == "kernel"
    assert got["head/bn3/scale"] == "norm"
    assert got["probe/kernel"] == got["probe/bias"] == "probe"
    by_leaf = {"kernel": "kernel", "scale": "norm", "bias": "bias"}
    for path, role in got.items():
        part, *_, leaf = path.split("/")
        assert role == ("probe" if part == "probe" else by_leaf[leaf]), path
    assert sorted(got.values()).count("kernel") == 53 + 3


def decayed_leaves(make, **settings):
    """With zero gradients all that moves is what decays."""
    module = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2), "bias": jnp.ones(2)}
    params = {"encoder": {"m": module}, "head": {"m": module}, "probe": module}
    optimizer = make(0.1, weight_decay=0.5, **settings)
    after = one_step(optimizer, params, jax.tree.map(jnp.zeros_like, params))
    moved = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), after, params)
    )
    names = {jax.tree_util.keystr(p, simple=True, separator="/"): m for p, m in moved}
    return {name for name, m in names.items() if m}


@pytest.mark.parametrize("make", [lars, sgd, adamw])
def test_only_kernels_of_encoder_and_head_decay(make):
    assert decayed_leaves(make) == {"encoder/m/kernel", "head/m/kernel"}


@pytest.mark.parametrize("make", [lars, sgd, adamw])
def test_all_of_encoder_and_head_may_decay(make):
    leaves = ("kernel", "scale", "bias")
    want = {f"{part}/m/{leaf}" for part in ("encoder", "head") for leaf in leaves}
    assert decayed_leaves(make, decayed="all") == want


def test_what_decays_has_a_name():
    with pytest.raises(ValueError, match=r"^decayed='biases': must"):
        sgd(0.1, weight_decay=0.5, decayed="biases")


def test_sgd_by_hand():
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    gradients = {"kernel": jnp.array([1.0]), "bias": jnp.array([1.0])}
    optimizer = sgd(0.1, weight_decay=0.5, momentum=0.9)
    state = optimizer.init(params)
    updates, state = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * (1 + 0.5 * 2), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.1, rtol=1e-6)
    updates, _ = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(updates["bias"], -0.1 * 1.9, rtol=1e-6)


def test_sgd_looks_ahead_with_nesterov():
    params = {"bias": jnp.array([0.0])}
    after = one_step(
        sgd(0.1, weight_decay=0.0, nesterov=True), params, {"bias": jnp.array([1.0])}
    )
    np.testing.assert_allclose(after["bias"], -0.1 * 1.9, rtol=1e-6)


def test_adamw_by_hand():
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    gradients = {"kernel": jnp.array([3.0]), "bias": jnp.array([-3.0])}
    after = one_step(adamw(0.1, weight_decay=0.5), params, gradients)
    np.testing.assert_allclose(after["kernel"], 2 - 0.1 * (1 + 0.5 * 2), rtol=1e-5)
    np.testing.assert_allclose(after["bias"], 2 + 0.1, rtol=1e-5)


def test_role_table_shows_each_part(simclr_params):
    table = role_table(simclr_params, adapts=True)
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in table.splitlines()}
    assert rows["encoder", "kernel"] == ["53", "23,454,912", "yes", "yes"]
    assert rows["encoder", "norm"][0] == rows["encoder", "bias"][0] == "53"
    assert rows["encoder", "norm"][2:] == rows["encoder", "bias"][2:] == ["no", "no"]
    assert rows["head", "kernel"][2:] == ["yes", "yes"]
    assert rows["head", "norm"][2:] == ["no", "no"]
    assert rows["probe", "probe"] == ["2", "20,490", "in", "its", "loss", "no"]
    everything = role_table(simclr_params, adapts=True, decayed="all")
    decays = {tuple(x.split()[:2]): x.split()[4] for x in everything.splitlines()[1:]}
    assert decays.pop(("probe", "probe")) == "in"  # its loss
    assert set(decays.values()) == {"yes"}
    without = role_table(simclr_params, adapts=False)
    assert [line.split()[-1] for line in without.splitlines()[1:]] == ["no"] * 7
