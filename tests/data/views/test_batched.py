"""The batched operations, in JAX, against the plain operations.

Random operations get the same draws as those of `definition.py` and give the same
images, up to rounding. `test_contract.py` compares with the reference's values.
"""

import functools

import jax
import numpy as np
import pytest
from scipy import stats
from simclr_settings import BLUR, JITTER, draws_of

from simclr_jax.data import augment_jax
from simclr_jax.data.sampling import boxes, order
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, device

# Names of their functions.
RANDOM = {name: function.__name__ for name, function in device.OPERATIONS.items()}
SETTINGS = {
    "flip": {},
    "color_jitter": JITTER,
    "grayscale": {},
    "blur": {**BLUR, "kernel_fraction": 0.4},
    "rotation": {},
    "cutout": {"size_fraction": 0.5},
    "noise": {"stddev_min": 0.05, "stddev_max": 0.1},
    "sobel": {},
}
# With draws that mean the same to both; the pixels of noise are each one's own.
CASES = [
    *((name, {}) for name in SETTINGS if name != "noise"),
    ("color_jitter", {"brightness_mode": "additive", "strength": 0.5}),
]


def _operation(name, **settings):
    """The function of that name with these settings, on images [N, H, W, 3]."""
    return jax.jit(functools.partial(getattr(augment_jax, name), **settings))


@functools.cache  # of what is compiled
def _random(name, **changes):
    """A random operation with the usual settings: (images, u, probability=...)."""
    return _operation(RANDOM[name], **{**SETTINGS[name], **changes})


# Against the plain operations ---------------------------------------------------------


def _plain(name, images, u, **settings):
    operation = definition.OPERATIONS[name]
    settings = {**SETTINGS[name], **settings}

    @tf.function(autograph=False)
    def run(images, u):
        return tf.map_fn(
            lambda pair: operation(*pair, **settings),
            (images, u),
            fn_output_signature=tf.float32,
        )

    return run(images, u).numpy()


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_random_operation_is_the_plain_one(name, changes, overshooting):
    u = draws_of(name, len(overshooting))
    result = np.asarray(_random(name, **changes)(overshooting, u, probability=0.7))
    expected = _plain(name, overshooting, u, probability=0.7, **changes)
    assert result.dtype == np.float32
    # float32's digits, multiplied along the chain of adjustments.
    np.testing.assert_allclose(result, expected, atol=2e-5)
    acted = (expected != overshooting).any(axis=(1, 2, 3))
    assert 0.4 < acted.mean() < 0.9
    # Images on which an operation does not act are left alone, bit for bit.
    np.testing.assert_array_equal(result[~acted], overshooting[~acted])


@pytest.mark.parametrize("name", RANDOM)
def test_probability_0_and_1_are_certain(name, overshooting):
    # A draw can be 0, but not 1.
    u = draws_of(name, len(overshooting))
    u[:48, 0], u[48:, 0] = 0, 1 - 2**-24
    images = np.clip(overshooting, 0.1, 0.9)
    operation = _random(name)
    never = operation(images, u, probability=0.0)
    np.testing.assert_array_equal(never, images)
    always = np.asarray(operation(images, u, probability=1.0))
    acted = (always != images).any(axis=(1, 2, 3))
    # The first images are grey, and a quarter of the turns are by 0 degrees.
    expected = u[9:, 1] >= 0.25 if name == "rotation" else True
    np.testing.assert_array_equal(acted[9:], expected)


def test_noise_is_gaussian_and_its_stddev_is_the_plain_one_s():
    images = np.full((200, 16, 16, 3), 0.5, np.float32)
    u = draws_of("noise", 200)
    result = np.asarray(_random("noise")(images, u, probability=0.5))
    acts = u[:, 0] < 0.5
    np.testing.assert_array_equal(result[~acts], images[~acts])
    stddev = 0.05 + 0.05 * u[acts, 1]
    residuals = (result[acts] - 0.5) / stddev[:, None, None, None]
    # Half of the range of 8 bits is 5 standard deviations and more: little is clipped.
    assert stats.kstest(residuals.reshape(-1), "norm").pvalue > 1e-3
    spread = residuals.std(axis=(1, 2, 3))
    assert np.abs(spread - 1).max() < 5 / np.sqrt(2 * residuals[0].size)
    # Neither pixels nor images share their noise.
    for first, second in (
        (residuals[..., 0], residuals[..., 1]),
        (residuals[:, 1:], residuals[:, :-1]),
        (residuals[1:], residuals[:-1]),
    ):
        correlation = np.corrcoef(first.reshape(-1), second.reshape(-1))[0, 1]
        assert abs(correlation) < 4 / np.sqrt(first.size)


def test_noise_depends_on_both_of_its_numbers_and_is_clipped():
    images = np.zeros((4, 8, 8, 3), np.float32)
    images[2:] = 1
    u = np.full((4, 4), 0.5, np.float32)
    u[1, 2], u[3, 3] = 0.75, 0.75
    operation = functools.partial(_random("noise"), probability=1.0)
    result = np.asarray(operation(images, u))
    np.testing.assert_array_equal(result, operation(images, u))
    assert result.min() == 0
    assert result.max() == 1
    noise = np.abs(result - images)
    assert not np.array_equal(noise[0], noise[1])
    assert not np.array_equal(noise[2], noise[3])


# Crops --------------------------------------------------------------------------------


def test_crop_and_resize_is_the_plain_one_for_any_box():
    generator = np.random.default_rng(0)
    count, height, width, size = 200, 40, 28, (24, 32)
    images = generator.random((count, height, width, 3), np.float32)
    h, w = (generator.integers(1, side + 1, count) for side in (height, width))
    # One pixel, all of them, a row and a column are among the boxes.
    h[:4], w[:4] = (1, height, 1, height), (1, width, width, 1)
    y, x = generator.integers(0, height - h + 1), generator.integers(0, width - w + 1)
    found = np.stack([y, x, h, w], axis=1).astype(np.int32)
    result = _operation("crop_and_resize", size=size)(images, found)
    expected = [
        definition.crop_and_resize(image, box, size)
        for image, box in zip(images, found, strict=True)
    ]
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_products_of_matrices_are_exact_on_accelerators(overshooting):
    # Where products are of 8 bits unless asked for; a CPU does not show it.
    box = np.zeros((len(overshooting), 4), np.int32)
    for name, arguments in (
        ("crop_and_resize", {"boxes": box, "size": (8, 8)}),
        ("gaussian_blur", {"sigma": overshooting[:, 0, 0, 0], "kernel_size": 5}),
    ):
        function = functools.partial(getattr(augment_jax, name), **arguments)
        equations = jax.make_jaxpr(function)(overshooting).jaxpr.eqns
        precisions = [
            equation.params["precision"]
            for equation in _flat(equations)
            if equation.primitive.name == "dot_general"
        ]
        assert precisions == [(jax.lax.Precision.HIGHEST,) * 2] * 2


def _flat(equations):
    """The equations, and those of the functions that they call."""
    for equation in equations:
        yield equation
        if "jaxpr" in equation.params:
            yield from _flat(equation.params["jaxpr"].eqns)


def test_random_resized_crop_takes_the_boxes_of_its_keys():
    images = np.random.default_rng(0).random((50, 40, 28, 3), np.float32)
    generator = np.random.default_rng(1)
    key = order.Key(*generator.integers(0, 2**32, (2, 50), np.uint32))
    settings = {
        "sampler": "torchvision",
        "area_min": 0.2,
        "area_max": 0.9,
        "ratio_min": 0.5,
        "ratio_max": 2.0,
    }
    crop = functools.partial(augment_jax.random_resized_crop, image_size=24, **settings)
    result = jax.jit(crop)(images, key)
    box_draws = boxes.BoxDraws((40, 28), **settings)
    found = boxes.random_boxes(key, box_draws)
    expected = _operation("crop_and_resize", size=(24, 24))(images, found)
    assert result.shape == (50, 24, 24, 3)
    np.testing.assert_allclose(result, expected, atol=1e-5)
