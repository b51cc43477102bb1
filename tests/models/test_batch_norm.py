"""BatchNorm against Flax's and NumPy, and over groups of devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from simclr_jax import losses, models, parallel
from simclr_jax.configs import cifar10
from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.plan import program
from simclr_jax.training import build


def draw(seed, *shape, dtype=jnp.float32):
    return (3 * jax.random.normal(jax.random.key(seed), shape) + 1).astype(dtype)


def with_weights(module, x):
    """Variables with other values than those at the start."""
    variables = module.init(jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(variables)
    drawn = [
        leaf + jax.random.uniform(jax.random.key(i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, drawn)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("running", [False, True])
def test_the_whole_batch_is_normalised_as_by_flax(dtype, running):
    x = draw(0, 6, 4, 4, 3, dtype=dtype)
    settings = {"momentum": 0.8, "dtype": dtype, "use_running_average": running}
    ours, flax = BatchNorm(**settings), nn.BatchNorm(**settings)
    variables = with_weights(flax, x)
    got = ours.apply(variables, x, mutable=["batch_stats"])
    want = flax.apply(variables, x, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert got[0].dtype == dtype


def test_parts_of_the_batch_have_their_own_statistics():
    x = draw(1, 6, 5, 2)
    module = BatchNorm(num_groups=3, use_bias=False)
    variables = with_weights(module, x)
    y, updated = module.apply(variables, x, mutable=["batch_stats"])
    parts = np.split(np.asarray(x, np.float64), 3)
    means = [part.mean((0, 1)) for part in parts]
    variances = [part.var((0, 1)) for part in parts]
    scale = np.asarray(variables["params"]["scale"], np.float64)
    want = [
        (part - mean) / np.sqrt(variance + 1e-5) * scale
        for part, mean, variance in zip(parts, means, variances, strict=True)
    ]
    np.testing.assert_allclose(y, np.concatenate(want), rtol=1e-5, atol=1e-5)
    for name, now in (("mean", means), ("var", variances)):
        before = np.asarray(variables["batch_stats"][name], np.float64)
        np.testing.assert_allclose(
            updated["batch_stats"][name],
            0.9 * before + 0.1 * np.mean(now, 0),
            rtol=1e-5,
        )


def test_running_statistics_need_no_groups():
    x = draw(2, 5, 3)
    whole = BatchNorm(use_running_average=True)
    grouped = BatchNorm(use_running_average=True, num_groups=4)
    variables = with_weights(whole, x)
    np.testing.assert_array_equal(
        grouped.apply(variables, x), whole.apply(variables, x)
    )


def test_the_parts_of_a_config_reach_encoder_and_head():
    config = cifar10.get_config("200epochs")
    assert config.batch.norm_parts == 2
    config.encoder.stem = "cifar"
    model = build.make_model(config, num_classes=None, mesh=parallel.create_mesh())
    assert model.encoder.batch_norm_groups == model.head.batch_norm_groups == 2


class Head:
    """The projection head by itself, with the interface of a model."""

    def __init__(self, num_groups):
        self.module = models.create_projection_head(
            output_dim=8, batch_norm_groups=num_groups
        )

    def init(self, key, h):
        variables = self.module.init(key, h)
        return variables["params"], variables["batch_stats"]

    def apply(self, params, stats, h, *, train):
        variables = {"params": params, "batch_stats": stats}
        z, updates = self.module.apply(variables, h, train, mutable=["batch_stats"])
        return models.Outputs(h, z, None), updates["batch_stats"]


def make_network(num_groups):
    return models.SimCLR(
        encoder=models.create_encoder(
            depth=10, width=0.0625, stem="cifar", batch_norm_groups=num_groups
        ),
        head=models.create_projection_head(
            num_layers=2, output_dim=8, batch_norm_groups=num_groups
        ),
    )


def loss_of(model, batch, params, stats, num_parts=1):
    """(loss, (z, statistics)) of a batch; of parts that see nothing of each other."""
    zs, updates = [], []
    for part in jnp.split(batch, num_parts):
        outputs, updated = model.apply(params, stats, part, train=True)
        zs.append(outputs.z)
        updates.append(updated)
    z = jnp.concatenate(zs)
    loss = losses.nt_xent(z.reshape(-1, 2, z.shape[-1]), temperature=0.5)
    return loss, (z, jax.tree.map(lambda *s: sum(s) / num_parts, *updates))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Head, (32, 16)),
        (make_network, (32, 8, 8, 3)),
    ],
)
def test_groups_of_devices_equal_as_many_devices_alone(make, shape):
    """Eight devices, two to a group: loss, gradient, statistics; and the messages."""
    batch = jax.random.uniform(jax.random.key(1), shape)
    params, stats = make(1).init(jax.random.key(0), batch[:1])
    # Blocks end with BatchNorms of scale 0, behind which gradients are 0.
    params = jax.tree.map(lambda p: jnp.where(p == 0, 0.5, p), params)

    def value_and_grad(model, **settings):
        function = functools.partial(loss_of, model, **settings)
        return jax.value_and_grad(function, argnums=1, has_aux=True)

    alone = jax.jit(value_and_grad(make(1), num_parts=4))
    (want, aux), gradient = alone(batch, params, stats)
    mesh = parallel.create_mesh(jax.devices()[:8])
    split, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    grouped = jax.jit(
        value_and_grad(make(4)),
        in_shardings=(split, whole, whole),
        out_shardings=whole,
    )
    compiled = grouped.lower(batch, params, stats).compile()
    (loss, found), found_gradient = compiled(
        jax.device_put(batch, split), *jax.device_put((params, stats), whole)
    )
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    for one, other in ((found, aux), (found_gradient, gradient)):
        assert np.abs(flat(one) - flat(other)).max() < 1e-5 * np.abs(flat(other)).max()
    collectives = program.analyse(compiled.as_text(), num_devices=8).collectives
    assert [c for c in collectives if c.devices == 2]
    # Projections travel, activations do not.
    moved = [c.dims for c in collectives if c.kind != "all-reduce"]
    assert max(map(math.prod, moved)) <= found[0].size
