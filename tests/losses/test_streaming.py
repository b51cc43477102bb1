"""The streaming form: the same loss, gradient and diagnostics as the matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import parallel
from simclr_jax.losses import LOSSES, Streaming, choose_streaming, contrastive_metrics
from simclr_jax.losses.streaming import fold_columns

STREAMING = [name for name, spec in LOSSES.items() if spec.can_stream]


def projections(num_images, num_views=2, width=16, *, seed=0, agreement=0.5):
    noise = np.random.default_rng(seed).normal(size=(num_images, num_views, width))
    z = agreement * noise[:, :1] + (1 - agreement) * noise
    return z.astype(np.float32)


def split(z, num_devices):
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    return mesh, jax.device_put(z, parallel.batch_sharding(mesh))


@functools.partial(jax.jit, static_argnames=("name", "temperature", "streaming"))
def value_and_gradient(z, name, temperature, streaming=None, **settings):
    loss = LOSSES[name].function
    return jax.value_and_grad(
        lambda z: loss(z, temperature=temperature, streaming=streaming, **settings)
    )(z)


def assert_same(name, z, num_devices, size, temperature=0.1):
    mesh, sharded = split(z, num_devices)
    expected, gradient = value_and_gradient(z, name, temperature)
    value, streamed_gradient = value_and_gradient(
        sharded, name, temperature, Streaming(mesh, size)
    )
    # DCL's losses are differences of logits: with logits of 8 to 16, whose neighbours
    # in float32 are 1e-6 apart, a loss of 0.078 has no more than five digits. Of the
    # two forms it was the matrix one that was 7e-7 away from float64.
    np.testing.assert_allclose(
        value, expected, rtol=2e-6, atol=0 if name == "nt_xent" else 1e-6
    )
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(streamed_gradient / scale, gradient / scale, atol=3e-6)


def test_nt_xent_and_its_relatives_have_the_form():
    assert STREAMING == ["nt_xent", "dcl", "dclw"]


SPLITS = [
    (24, 1, 11),  # a last block of four columns
    (40, 8, 7),  # blocks that end inside an image
    (24, 1, 500),  # one block, larger than the batch
    (24, 1, 16),  # three whole blocks
    (24, 1, 1),
    (24, 4, 16),
]
# By default the first three of NT-Xent, and the second of its relatives.
FAST = [("nt_xent", *split_) for split_ in SPLITS[:3]]
FAST += [(name, *SPLITS[1]) for name in STREAMING[1:]]


@pytest.mark.parametrize(
    ("name", "num_images", "num_devices", "size"),
    [
        pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
        for case in ((name, *split_) for name in STREAMING for split_ in SPLITS)
    ],
)
def test_loss_and_gradient_are_those_of_the_matrix(name, num_images, num_devices, size):
    assert_same(name, projections(num_images), num_devices, size)


@pytest.mark.parametrize(
    "temperature", [0.05, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_many_views_and_other_temperatures(temperature):
    assert_same("nt_xent", projections(16, 3), 2, 5, temperature)


def test_large_logits_do_not_overflow():
    # Without normalisation and at a low temperature, logits of thousands.
    z = 30 * projections(12)
    mesh, sharded = split(z, 2)
    settings = {"temperature": 0.05, "normalize": False}
    loss = LOSSES["nt_xent"].function
    expected, gradient = jax.jit(jax.value_and_grad(lambda z: loss(z, **settings)))(z)
    value, streamed_gradient = jax.jit(
        jax.value_and_grad(lambda z: loss(z, **settings, streaming=Streaming(mesh, 5)))
    )(sharded)
    assert np.isfinite(expected)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(
        streamed_gradient, gradient, atol=1e-5 * np.abs(gradient).max()
    )


def test_one_image_has_no_negatives():
    value, gradient = value_and_gradient(
        projections(1), "nt_xent", 0.1, Streaming(None)
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("num_devices", "size"),
    [(1, 7), pytest.param(1, 64, marks=pytest.mark.slow), (4, 5)],
)
def test_diagnostics_are_those_of_the_matrix(num_devices, size):
    z = projections(32, agreement=0.3)
    mesh, sharded = split(z, num_devices)
    metrics_of = jax.jit(contrastive_metrics, static_argnames="streaming")
    expected = metrics_of(z, temperature=0.2)
    assert 0 < expected["contrastive_accuracy"] < 1
    metrics = metrics_of(sharded, temperature=0.2, streaming=Streaming(mesh, size))
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)


def test_ties_go_to_the_first_column():
    z = np.ones((6, 2, 4), np.float32)
    metrics = contrastive_metrics(z, temperature=0.5, streaming=Streaming(None, 4))
    np.testing.assert_allclose(metrics["contrastive_accuracy"], 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["contrastive_entropy"], np.log(6), rtol=1e-6)


def test_nothing_of_the_size_of_all_pairs_exists():
    z = jax.ShapeDtypeStruct((512, 2, 16), jnp.float32)
    mesh = parallel.create_mesh()

    def total(z, streaming):
        metrics = contrastive_metrics(z, temperature=0.1, streaming=streaming)
        loss = LOSSES["nt_xent"].function(z, temperature=0.1, streaming=streaming)
        return loss, metrics

    def temporaries(streaming):
        function = jax.grad(functools.partial(total, streaming=streaming), has_aux=True)
        split_ = parallel.batch_sharding(mesh)
        compiled = jax.jit(function, in_shardings=split_).lower(z).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    rows, columns = 1024 // 8, 1024
    assert temporaries(None) > 4 * rows * columns
    # All embeddings on every device, 64 KB, and a few blocks of 128 x 64.
    assert temporaries(Streaming(mesh, 64)) < 4 * rows * columns / 2


def test_blocks_are_chosen_where_the_matrix_is_large():
    mesh = parallel.create_mesh()
    assert choose_streaming(512, None) is None
    assert choose_streaming(8192, None) == Streaming(None)
    assert choose_streaming(4096, mesh) is None
    assert choose_streaming(8192, mesh) == Streaming(mesh)


def test_block_sizes_bound_the_memory():
    assert Streaming().size_for(512) == 2048
    assert Streaming().size_for(8192) == 512
    assert Streaming().size_for(10**6) == 256
    assert Streaming(size=3).size_for(8192) == 3


def test_folding_sees_every_column_once():
    columns = jnp.arange(10.0) + 1

    def fold(carry, start, block):
        return carry + jnp.sum(block * (start + jnp.arange(len(block))))

    total = fold_columns(fold, jnp.zeros(()), columns, block_size=4)
    assert total == sum(i * (i + 1) for i in range(10))
