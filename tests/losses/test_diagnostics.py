"""Label-free diagnostics against Google's metrics and NumPy."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses import (
    Streaming,
    chance_level,
    contrastive_metrics,
    diagnostics,
    effective_rank,
)

metrics_of = jax.jit(contrastive_metrics, static_argnames="temperature")
rank_of = jax.jit(effective_rank)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "nt_xent.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_images", [4, 32, 256])
def test_accuracy_and_entropy_match_google(golden, num_images, temperature):
    z = np.stack([golden[f"N{num_images}/z{v}"] for v in (1, 2)], axis=1)
    got = metrics_of(z, temperature=temperature)
    want = f"N{num_images}/T{temperature}/norm1/contrast_"
    np.testing.assert_allclose(got["contrastive_accuracy"], golden[f"{want}acc"])
    # The reference adds 1e-8 to each of the N probabilities in its logarithm.
    np.testing.assert_allclose(
        got["contrastive_entropy"],
        golden[f"{want}entropy"],
        rtol=1e-5,
        atol=1e-8 * num_images,
    )


def test_accuracy_counts_view_1_among_the_view_2s():
    """Images 0 and 1 have swapped second views; of view 1, only image 2 is right."""
    first = np.eye(3, 4, dtype=np.float32)
    z = np.stack([first, first[[1, 0, 2]]], axis=1)
    got = metrics_of(z, temperature=0.1)
    np.testing.assert_allclose(got["contrastive_accuracy"], 1 / 3, rtol=1e-6)
    # Both view 1s are closest to the first view 2, each view 2 to its own view 1.
    first = np.array([[1, 0], [1, 0.1]], np.float32)
    z = np.stack([first, np.eye(2, dtype=np.float32)], axis=1)
    got = metrics_of(z, temperature=0.1)
    assert got["contrastive_accuracy"] == 0.5


def test_entropy_of_the_undecided_is_that_of_a_uniform_choice():
    got = metrics_of(jnp.ones((7, 2, 4)), temperature=0.1)
    np.testing.assert_allclose(got["contrastive_entropy"], math.log(7), rtol=1e-6)


def test_similarities_match_numpy():
    z = np.random.default_rng(0).normal(size=(9, 2, 5)).astype(np.float32)
    got = metrics_of(z, temperature=0.1)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    cosines = unit[:, 0] @ unit[:, 1].T
    diagonal = np.eye(9, dtype=bool)
    np.testing.assert_allclose(
        got["positive_similarity"], cosines[diagonal].mean(), atol=1e-6
    )
    np.testing.assert_allclose(
        got["negative_similarity"], cosines[~diagonal].mean(), atol=1e-6
    )


def groups_of_equal_images(num_images, num_groups, *, seed=0):
    """(sizes of the groups, unit vectors of their two views [G, K], z [B, 2, K])."""
    rng = np.random.default_rng(seed)
    group = np.sort(rng.integers(0, num_groups, num_images))
    views = rng.normal(size=(num_groups, 2, 3)) + 1
    views = (views / np.linalg.norm(views, axis=-1, keepdims=True)).astype(np.float32)
    sizes = np.bincount(group, minlength=num_groups)
    return sizes, np.float64(views[:, 0]), np.float64(views[:, 1]), views[group]


@pytest.mark.parametrize("num_images", [46_342, 65_536, 262_144])
def test_mean_similarities_of_more_pairs_than_an_int32_counts(num_images):
    assert num_images * (num_images - 1) > 2**31
    sizes, first, second, z = groups_of_equal_images(num_images, 50)
    cosines = first @ second.T
    equal = np.sum(sizes * np.diag(cosines))
    pairs = sizes @ cosines @ sizes - equal
    positive, negative = jax.jit(diagnostics.mean_cosines)(z[:, 0], z[:, 1])
    np.testing.assert_allclose(positive, equal / num_images, rtol=1e-5)
    want = pairs / (num_images * (num_images - 1))
    np.testing.assert_allclose(negative, want, rtol=1e-5)


@pytest.mark.slow
def test_accuracy_and_entropy_of_more_pairs_than_an_int32_counts():
    num_images, temperature = 50_000, 0.1
    sizes, first, second, z = groups_of_equal_images(num_images, 50)
    cosines = first @ second.T
    # Equally near images: the first of the group counts as the nearest.
    own = np.argmax(cosines, axis=1) == np.arange(50)
    weights = np.exp(cosines / temperature)
    shares = weights / (weights @ sizes)[:, None]
    entropies = -(shares * np.log(shares)) @ sizes
    got = contrastive_metrics(z, temperature=temperature, streaming=Streaming())
    np.testing.assert_allclose(
        got["contrastive_accuracy"], own.sum() / num_images, rtol=1e-6
    )
    np.testing.assert_allclose(
        got["contrastive_entropy"], sizes @ entropies / num_images, rtol=1e-5
    )


def test_metrics_are_float32_scalars_of_bfloat16_and_of_one_image():
    z = jnp.ones((1, 2, 4), jnp.bfloat16)
    for value in metrics_of(z, temperature=0.1).values():
        assert value.shape == ()
        assert value.dtype == jnp.float32
        assert np.isfinite(value)


def test_diagnostics_have_no_gradient():
    z = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)

    def total(z):
        metrics = metrics_of(z, temperature=0.1)
        return sum(metrics.values()) + rank_of(z[:, 0])

    assert not jax.grad(total)(z).any()


@pytest.mark.parametrize("shape", [(40, 6), (8, 20)])
def test_effective_rank_is_the_participation_ratio(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * np.linspace(0.2, 2, shape[1]) + 5
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T))
    want = eigenvalues.sum() ** 2 / np.sum(eigenvalues**2)
    np.testing.assert_allclose(rank_of(np.float32(x)), want, rtol=1e-4)


def test_effective_rank_of_a_line_is_1():
    x = np.linspace(-1, 2, 50)[:, None] * np.array([1.0, -2.0, 0.5]) + 3
    np.testing.assert_allclose(rank_of(np.float32(x)), 1, rtol=1e-5)


def test_effective_rank_of_a_ball_is_its_dimension():
    x = np.random.default_rng(0).normal(size=(20_000, 16))
    np.testing.assert_allclose(rank_of(np.float32(x)), 16, rtol=0.01)


@pytest.mark.parametrize("num_rows", [4, 5, 1000])
@pytest.mark.parametrize("value", [0.0, 0.3, 123.4])
def test_effective_rank_of_equal_rows_is_0(value, num_rows):
    row = value * np.arange(1, 17, dtype=np.float32)
    assert rank_of(np.tile(row, (num_rows, 1))) == 0


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_effective_rank_does_not_depend_on_scale(scale):
    x = np.random.default_rng(0).normal(size=(100, 8)) * np.linspace(0.5, 2, 8)
    want = rank_of(np.float32(x))
    np.testing.assert_allclose(rank_of(np.float32(x * scale)), want, rtol=1e-5)


def test_chance_level_is_the_loss_over_all_other_views():
    assert chance_level(256) == math.log(511)
    assert chance_level(10, num_views=3) == math.log(29)
