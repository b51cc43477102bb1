"""NT-Xent against Google's code, against Eq. 1 and at the edges of float32."""

import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses import chance_level, l2_normalize, nt_xent

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
STATIC = ("temperature", "normalize")
loss_of = jax.jit(nt_xent, static_argnames=STATIC)
loss_and_gradient = jax.jit(jax.value_and_grad(nt_xent), static_argnames=STATIC)
CASES = list(itertools.product((4, 32, 256), (0.05, 0.1, 0.5, 1.0), (True, False)))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "nt_xent.npz") as arrays:
        return dict(arrays)


def tolerance(num_images, temperature, normalize):
    """Of the recording; where a batch is nearly solved, its own distance to float64."""
    if (num_images, temperature) == (4, 0.05):
        return 1.5e-3  # a loss of 1e-4, whose recorded gradients are off by 8e-4
    if (num_images, temperature, normalize) == (32, 0.05, True):
        return 2e-5  # a loss of 6e-3, whose recorded gradients are off by 8e-6
    return 1e-4 if temperature == 0.05 and not normalize else 1e-5


def equation_1(z, temperature, *, normalize=True):
    """Eq. 1 in float64, one pair at a time; averaged over positives where V > 2."""
    z = np.asarray(z, np.float64)
    if normalize:
        z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    image = np.repeat(np.arange(z.shape[0]), z.shape[1])
    z = z.reshape(len(image), -1)
    losses = []
    for i in range(len(z)):
        others = [k for k in range(len(z)) if k != i]
        scores = {k: math.exp(z[i] @ z[k] / temperature) for k in others}
        for j in others:
            if image[j] == image[i]:
                losses.append(-math.log(scores[j] / sum(scores.values())))
    return np.mean(losses)


def projections(num_images=6, num_views=2, width=16, *, seed=0, agreement=0.6):
    noise = np.random.default_rng(seed).normal(size=(num_images, num_views, width))
    z = agreement * noise[:, :1] + (1 - agreement) * noise
    return z.astype(np.float32)


@pytest.mark.parametrize(("num_images", "temperature", "normalize"), CASES)
def test_loss_and_gradient_match_google(
    golden, num_images, temperature, normalize, fidelity
):
    """Google's loss is the sum of two directions, twice the mean over anchors."""
    key = f"N{num_images}/T{temperature}/norm{int(normalize)}"
    rtol = tolerance(num_images, temperature, normalize)
    z = np.stack([golden[f"N{num_images}/z{v}"] for v in (1, 2)], axis=1)
    loss, gradient = loss_and_gradient(z, temperature=temperature, normalize=normalize)
    gradient = 2 * np.asarray(gradient)
    fidelity("NT-Xent: loss", 2 * loss, golden[f"{key}/loss"], rtol=rtol)
    norms = np.linalg.norm(gradient, axis=(0, 2))
    fidelity("NT-Xent: gradient norms", norms, golden[f"{key}/grad_l2"], rtol=rtol)
    for view in (0, 1):
        want = golden[f"{key}/grad_z{view + 1}"]
        got = gradient[:: num_images // len(want), view]
        atol = rtol * np.abs(gradient).max()
        fidelity("NT-Xent: gradients", got, want, atol=atol)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize(("num_images", "num_views"), [(1, 2), (6, 2), (5, 3)])
def test_is_equation_1(num_images, num_views, temperature, normalize):
    z = projections(num_images, num_views)
    got = loss_of(z, temperature=temperature, normalize=normalize)
    want = equation_1(z, temperature, normalize=normalize)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert got.shape == ()
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("num_views", [2, 3])
def test_gradient_is_that_of_equation_1(num_views):
    z = projections(3, num_views, 4).astype(np.float64)
    direction = np.random.default_rng(1).normal(size=z.shape)
    _, gradient = loss_and_gradient(np.float32(z), temperature=0.2)
    step = 1e-6 * direction
    want = (equation_1(z + step, 0.2) - equation_1(z - step, 0.2)) / 2e-6
    np.testing.assert_allclose(np.sum(gradient * direction), want, rtol=1e-5)


def test_nearly_solved_batch_keeps_its_digits(golden):
    """The loss is a small difference of logits around 20 there."""
    z = np.stack([golden["N32/z1"], golden["N32/z2"]], axis=1)
    want = equation_1(z, 0.05)
    assert want < 0.005
    np.testing.assert_allclose(loss_of(z, temperature=0.05), want, rtol=1e-5)


def test_bfloat16_inputs_cost_only_their_own_rounding():
    z = projections(32, width=128, agreement=0.4)
    rounded = jnp.asarray(z, jnp.bfloat16)
    loss, gradient = loss_and_gradient(rounded, temperature=0.05)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    np.testing.assert_allclose(loss, equation_1(rounded, 0.05), rtol=1e-5)
    np.testing.assert_allclose(loss, equation_1(z, 0.05), rtol=0.01)


def test_products_are_in_full_float32():
    """Where the default precision is lower (TPU, GPU), also in the backward pass."""
    lowered = loss_and_gradient.lower(projections(), temperature=0.05)
    lines = lowered.as_text().splitlines()
    products = [line for line in lines if "stablehlo.dot_general" in line]
    assert len(products) >= 4
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize("factor", [1e-5, 1e15, 1e25])
def test_extreme_norms_stay_finite(factor):
    z = projections() * np.float32(factor)
    loss, gradient = loss_and_gradient(z, temperature=0.5)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    if factor <= 1e15:  # its square is a float32
        np.testing.assert_allclose(loss, equation_1(projections(), 0.5), rtol=1e-5)


def test_zero_vectors_stay_finite():
    z = projections()
    z[0] = 0
    loss, gradient = loss_and_gradient(z, temperature=0.05)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    all_zero = loss_of(np.zeros_like(z), temperature=0.05)
    np.testing.assert_allclose(all_zero, chance_level(len(z)), rtol=1e-6)


def test_normalised_vectors_have_length_1():
    z = projections() * 1e3
    np.testing.assert_allclose(
        l2_normalize(z), z / np.linalg.norm(z, axis=-1, keepdims=True), rtol=1e-5
    )
    assert not l2_normalize(np.zeros((2, 3))).any()
    assert l2_normalize(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32


def test_order_of_images_and_of_views_does_not_matter():
    z = projections()
    want = loss_of(z, temperature=0.5)
    order = np.random.default_rng(1).permutation(len(z))
    np.testing.assert_allclose(loss_of(z[order], temperature=0.5), want, rtol=1e-6)
    np.testing.assert_allclose(loss_of(z[:, ::-1], temperature=0.5), want, rtol=1e-6)


def test_norms_do_not_matter_unless_asked():
    z = projections()
    scaled = z * np.linspace(0.5, 3, len(z), dtype=np.float32)[:, None, None]
    got = loss_of(scaled, temperature=0.5)
    np.testing.assert_allclose(got, loss_of(z, temperature=0.5), rtol=1e-6)
    plain = [loss_of(x, temperature=0.5, normalize=False) for x in (z, scaled)]
    assert abs(plain[0] - plain[1]) > 0.1


@pytest.mark.parametrize("shape", [(4, 8), (4, 1, 8), (4, 2, 2, 8)])
def test_bad_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"z has shape .*\[B, V, K\]"):
        nt_xent(jnp.ones(shape), temperature=0.1)


@pytest.mark.parametrize("temperature", [0, -0.1, math.nan])
def test_bad_temperatures_are_named(temperature):
    with pytest.raises(ValueError, match=r"temperature=.*must be positive"):
        nt_xent(jnp.ones((2, 2, 4)), temperature=temperature)
