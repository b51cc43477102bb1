"""Augmentations: exact operations, random draws, composition."""

import itertools

import numpy as np
import pytest
import simclr_settings
from scipy import stats
from simclr_settings import AREA_AND_RATIO, CROP, view_in_graph

from simclr_jax.data.sampling import boxes, draws, order
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, device

JITTER = {**simclr_settings.JITTER, "strength": 0.5}
# Settings with which an operation, where it acts, changes the pixels.
SETTINGS = {
    "flip": {},
    "color_jitter": JITTER,
    "grayscale": {},
    "blur": {"sigma_min": 0.5, "sigma_max": 2.0, "kernel_fraction": 0.4},
    "rotation": {},
    "cutout": {"size_fraction": 0.5},
    "noise": {"stddev_min": 0.01, "stddev_max": 0.1},
    "sobel": {},
}
COMPOSED = {name: {"probability": 0.5, **SETTINGS[name]} for name in SETTINGS}
COMPOSED["crop"] = CROP
# A quarter of the rotations are by 0 degrees.
SHARE_ACTING = {name: 0.75 if name == "rotation" else 1.0 for name in SETTINGS}

SEEDS = tf.constant(np.random.default_rng(0).integers(0, 2**62, (8000, 2)))
DRAWS = np.random.default_rng(2).random((8000, 9), np.float32)
IMAGE = np.random.default_rng(1).uniform(0.2, 0.8, (8, 8, 3)).astype(np.float32)


def _draw(function, rows):
    """function(u) for each row of draws, stacked."""

    @tf.function(autograph=False)
    def run(rows):
        spec = tf.TensorSpec(None, tf.float32)
        return tf.map_fn(
            lambda u: tf.cast(function(u), tf.float32),
            rows,
            fn_output_signature=spec,
        )

    return run(tf.constant(rows)).numpy()


def _apply(name, count, image=IMAGE, **settings):
    operation = definition.OPERATIONS[name]
    settings = {**SETTINGS[name], **settings}
    own = DRAWS[:count, : draws.COUNTS[name]]
    return _draw(lambda u: operation(tf.constant(image), u, **settings), own)


def _is_uniform(values, low, high):
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def _uint8_image(height, width, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), np.uint8)


LETTERS = "bcsh"


# Random operations --------------------------------------------------------------------


def test_the_tables_name_all_operations():
    assert set(SETTINGS) == set(definition.OPERATIONS) == set(device.OPERATIONS)
    assert {"crop", *SETTINGS} == set(draws.COUNTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_probability_0_leaves_the_image_alone(name):
    for result in _apply(name, 20, probability=0.0):
        np.testing.assert_array_equal(result, IMAGE)


@pytest.mark.parametrize("name", SETTINGS)
def test_probability_1_always_acts(name):
    count = 400
    results = _apply(name, count, probability=1.0)
    acted = (results != IMAGE).any(axis=(1, 2, 3)).mean()
    if name == "rotation":
        assert abs(acted - 0.75) < 4 * np.sqrt(0.75 * 0.25 / count)
    else:
        assert acted == 1.0
    assert results.min() >= 0
    assert results.max() <= 1


@pytest.mark.parametrize("name", SETTINGS)
def test_probability_is_the_share_of_images_changed(name):
    count, probability = 2000, 0.3
    results = _apply(name, count, probability=probability)
    acted = (results != IMAGE).any(axis=(1, 2, 3)).mean()
    expected = probability * SHARE_ACTING[name]
    assert abs(acted - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_result_depends_on_the_draws_alone(name):
    first, again = (_apply(name, 64, probability=0.5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    different = {result.tobytes() for result in first}
    at_least = {"flip": 2, "grayscale": 2, "sobel": 2, "rotation": 4}.get(name, 20)
    assert len(different) >= at_least


def test_flip_mirrors_left_and_right():
    for result in _apply("flip", 3, probability=1.0):
        np.testing.assert_array_equal(result, IMAGE[:, ::-1])


def test_grayscale_drops_the_colours():
    (result,) = _apply("grayscale", 1, probability=1.0)
    luma = IMAGE @ np.array([0.2989, 0.5870, 0.1140], np.float32)
    np.testing.assert_allclose(result, np.repeat(luma[..., None], 3, 2), atol=1e-6)


def test_rotation_is_by_any_quarter_turn():
    count = 2000
    turns = [np.rot90(IMAGE, k).tobytes() for k in range(4)]
    results = _apply("rotation", count, probability=1.0)
    counts = np.bincount([turns.index(result.tobytes()) for result in results])
    assert len(counts) == 4
    assert stats.chisquare(counts).pvalue > 1e-3
    # Whether to turn says nothing about how far.
    results = _apply("rotation", count, probability=0.5)
    counts = np.bincount([turns.index(result.tobytes()) for result in results])
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


def test_cutout_blackens_a_square_anywhere():
    side, fraction, count = 16, 0.5, 2000
    image = np.random.default_rng(0).uniform(0.2, 0.8, (side, side, 3))
    image = image.astype(np.float32)
    results = _apply("cutout", count, image, probability=1.0, size_fraction=fraction)
    holes = (results == 0).all(axis=-1)
    np.testing.assert_array_equal(results, np.where(holes[..., None], 0, image))
    rows, columns = holes.any(axis=2), holes.any(axis=1)
    np.testing.assert_array_equal(holes, rows[:, :, None] & columns[:, None])
    assert rows.sum(axis=1).max() == columns.sum(axis=1).max() == fraction * side
    # Chance that a centre lies within half a square of pixel p + 0.5.
    middle = np.arange(side) + 0.5
    reach = fraction * side / 2
    chance = (np.minimum(middle + reach, side) - np.maximum(middle - reach, 0)) / side
    for lines in (rows, columns):
        assert np.abs(lines.mean(axis=0) - chance).max() < 4 * 0.5 / np.sqrt(count)
    assert abs(holes.mean() - chance.mean() ** 2) < 0.01


def test_noise_is_gaussian_with_a_random_stddev():
    image = np.full((24, 24, 3), 0.5, np.float32)
    settings = {"stddev_min": 0.05, "stddev_max": 0.05}
    residuals = (_apply("noise", 50, image, probability=1.0, **settings) - 0.5) / 0.05
    assert stats.kstest(residuals.reshape(-1), "norm").pvalue > 1e-3
    first, second = residuals[..., 0].reshape(-1), residuals[..., 1].reshape(-1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(first))

    # Half of the images keep no noise; of the others the stddev is uniform.
    results = _apply("noise", 600, image, probability=0.5)
    stddevs = results.std(axis=(1, 2, 3))
    stddevs = stddevs[stddevs > 0]
    assert stats.ks_1samp(stddevs, stats.uniform(0.01, 0.09).cdf).pvalue > 1e-3


def test_noise_is_clipped():
    for level in (0.0, 1.0):
        image = np.full((8, 8, 3), level, np.float32)
        results = _apply("noise", 20, image, probability=1.0)
        assert 0 <= results.min() < results.max() <= 1


def test_sobel_shows_edges():
    step = np.zeros((8, 8, 3), np.float32)
    step[:, 4:, 0] = 1
    step[4:, :, 1] = 1
    edges = definition.sobel(tf.constant(step)).numpy()
    line = np.zeros(8)
    line[3:5] = 1
    np.testing.assert_allclose(edges[..., 0], np.tile(line, (8, 1)), atol=1e-6)
    np.testing.assert_allclose(edges[..., 1], np.tile(line[:, None], 8), atol=1e-6)
    np.testing.assert_array_equal(edges[..., 2], 0)
    faint = definition.sobel(tf.constant(step / 4))
    np.testing.assert_allclose(faint, edges / 4, atol=1e-6)
    corners = np.kron(np.eye(2), np.ones((4, 4)))[..., None].repeat(3, 2)
    assert definition.sobel(tf.constant(corners, tf.float32)).numpy().max() <= 1


def test_blur_sigma_is_uniform():
    # Of a blurred point the ratio of neighbour to centre tells sigma.
    image = np.zeros((8, 8, 3), np.float32)
    image[4, 4] = 1
    results = _apply("blur", 2000, image, probability=0.5)
    ratio = results[:, 4, 5, 0] / results[:, 4, 4, 0]
    sigmas = np.sqrt(-0.5 / np.log(ratio[ratio > 0]))
    assert _is_uniform(sigmas, 0.5, 2.0)


@pytest.mark.parametrize(
    ("height", "width", "kernel_size"), [(32, 32, 3), (64, 48, 6), (224, 224, 22)]
)
def test_blur_kernel_is_a_tenth_of_the_height(height, width, kernel_size, monkeypatch):
    sizes = []

    def blur(image, sigma, kernel_size):
        sizes.append(int(kernel_size))
        return image

    monkeypatch.setattr(definition, "gaussian_blur", blur)
    settings = {"sigma_min": 0.1, "sigma_max": 2.0, "kernel_fraction": 0.1}
    image = np.zeros((height, width, 3), np.float32)
    definition.random_blur(
        tf.constant(image), DRAWS[0, :2], probability=1.0, **settings
    )
    assert sizes == [kernel_size]


def test_blur_acts_on_an_image_clipped_to_0_1():
    # As in the reference, which clips before blurring; bicubic resizing overshoots.
    image = np.random.default_rng(0).uniform(-0.2, 1.2, (8, 8, 3)).astype(np.float32)
    results = _apply("blur", 3, image, probability=1.0)
    clipped = _apply("blur", 3, np.clip(image, 0, 1), probability=1.0)
    np.testing.assert_allclose(results, clipped, atol=1e-6)


# Colour jitter ------------------------------------------------------------------------


def test_color_jitter_uses_all_operations_in_any_order(monkeypatch):
    # Each adjustment writes a digit, the last one in front.
    names = ("brightness", "contrast", "saturation", "hue")
    for digit, name in enumerate(names):
        monkeypatch.setattr(
            definition,
            f"adjust_{name}",
            lambda x, _, digit=digit, **kw: (x + digit) / 4,
        )
    image = np.zeros((1, 1, 3), np.float32)
    codes = _apply("color_jitter", 4000, image, probability=1.0)[:, 0, 0, 0] * 256
    digits = codes.astype(int)[:, None] // 4 ** np.arange(4) % 4
    orders = ["".join(LETTERS[digit] for digit in own) for own in digits]
    assert {frozenset(order) for order in orders} == {frozenset(LETTERS)}
    counts = np.unique(orders, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_color_jitter_clips_after_every_operation(monkeypatch):
    def overshoot(x, *_, **__):
        inside = tf.reduce_all((x >= 0) & (x <= 1))
        return tf.where(inside, 3 * x - 1, np.nan)

    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(definition, f"adjust_{name}", overshoot)
    results = _apply("color_jitter", 50, probability=1.0)
    assert results.min() >= 0
    assert results.max() <= 1


ONLY = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
PIXELS = np.zeros((1, 2, 3), np.float32) + np.float32([[0.2], [0.3]])
COLOUR = np.float32([[[0.2, 0.18, 0.16]]])


def _jitter_only(image, **settings):
    """Results of those of 3000 draws in which the jitter acted."""
    settings = {**JITTER, **ONLY, "strength": 1.0, **settings}
    operation = definition.color_jitter
    results = _draw(
        lambda u: operation(tf.constant(image), u, probability=0.6, **settings),
        DRAWS[:3000],
    )
    return results[np.abs(results - image).max(axis=(1, 2, 3)) > 1e-6]


@pytest.mark.parametrize(
    ("strength", "low", "high"), [(1.0, 0.2, 1.8), (0.5, 0.6, 1.4), (1.5, 0.0, 2.2)]
)
def test_brightness_factor_is_uniform(strength, low, high):
    results = _jitter_only(PIXELS, brightness=0.8, strength=strength)
    factors = results / PIXELS
    np.testing.assert_allclose(factors, factors[:, :1, :1, :1] + 0 * factors, atol=1e-5)
    assert _is_uniform(factors[:, 0, 0, 0], low, high)


def test_additive_brightness_shift_is_uniform():
    image = np.float32([[[0.4, 0.5, 0.6]]])
    settings = {"brightness": 0.8, "strength": 0.5, "brightness_mode": "additive"}
    shifts = _jitter_only(image, **settings) - image
    np.testing.assert_allclose(shifts, shifts[..., :1] + 0 * shifts, atol=1e-5)
    assert _is_uniform(shifts[:, 0, 0, 0], -0.4, 0.4)


def test_contrast_factor_is_uniform_and_keeps_the_mean():
    results = _jitter_only(PIXELS, contrast=0.8)
    np.testing.assert_allclose(results.mean(axis=2), 0.25, atol=1e-5)
    factors = (results[:, 0, 1, 0] - results[:, 0, 0, 0]) / 0.1
    assert _is_uniform(factors, 0.2, 1.8)


def test_saturation_factor_is_uniform():
    results = _jitter_only(COLOUR, saturation=0.8)
    saturation = 1 - results.min(axis=-1) / results.max(axis=-1)
    assert _is_uniform(saturation[:, 0, 0] / 0.2, 0.2, 1.8)


@pytest.mark.parametrize(("strength", "reach"), [(1.0, 0.15), (0.5, 0.075)])
def test_hue_turn_is_uniform(strength, reach):
    # From red: towards yellow green rises, towards magenta blue does.
    red = np.float32([[[1.0, 0.0, 0.0]]])
    results = _jitter_only(red, hue=0.15, strength=strength)
    green, blue = results[:, 0, 0, 1], results[:, 0, 0, 2]
    assert _is_uniform((green - blue) / 6, -reach, reach)


# Composition --------------------------------------------------------------------------


ALL = tuple(draws.COUNTS)
KEYS = order.view_keys(
    np.arange(1000, dtype=np.uint32), np.zeros(1000, np.uint32), seed=0, num_views=1
)


def _view_draws(operations, count):
    return draws.view_draws(KEYS, operations)[:count, 0]


def _view(operations, settings=COMPOSED, image_size=16):
    """view(image, u) of the whole image."""
    view = definition.compose(operations, settings, image_size=image_size)
    return lambda image, u: view(image, (0, 0, *image.shape[:2]), u).numpy()


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in itertools.permutations(ALL, 2) if pair[1] != "crop"],
)
def test_any_two_operations_compose(first, second):
    operations = (first, second)
    view = definition.compose(operations, COMPOSED, image_size=16)
    if "crop" in operations:  # then shapes can be unknown to the graph
        view = view_in_graph(view)
    (u,) = _view_draws(operations, 1)
    result = view(_uint8_image(20, 24), (2, 3, 10, 12), u)
    assert result.shape == (16, 16, 3)
    assert result.dtype == tf.uint8


def test_a_view_depends_on_image_box_and_draws_alone():
    view = view_in_graph(definition.compose(ALL, COMPOSED, image_size=16))
    image, box = _uint8_image(20, 24), (2, 3, 10, 12)
    uniform = _view_draws(ALL, 20)
    views = [view(image, box, u).numpy() for u in uniform]
    again = [view(image, box, u).numpy() for u in uniform]
    np.testing.assert_array_equal(views, again)
    assert len({view.tobytes() for view in views}) == 20
    for other in (
        view(_uint8_image(20, 24, seed=1), box, uniform[0]),
        view(image, (3, 3, 10, 12), uniform[0]),
    ):
        assert not np.array_equal(other, views[0])


@pytest.mark.parametrize("left_out", SETTINGS)
def test_leaving_one_out_does_not_change_the_others(left_out):
    image = _uint8_image(20, 24)
    others = tuple(name for name in ALL if name != left_out)
    without = _view(others)
    never = {**COMPOSED, left_out: {**SETTINGS[left_out], "probability": 0.0}}
    idle = _view(ALL, never)
    for few, many in zip(_view_draws(others, 4), _view_draws(ALL, 4), strict=True):
        np.testing.assert_array_equal(without(image, few), idle(image, many))


def test_operations_apply_in_the_order_given():
    image = np.full((16, 16, 3), 255, np.uint8)
    settings = {
        "cutout": {"probability": 1.0, "size_fraction": 0.5},
        "sobel": {"probability": 1.0},
    }
    u = np.full(4, 0.5, np.float32)
    edges_last = _view(("cutout", "sobel"), settings)(image, u)
    edges_first = _view(("sobel", "cutout"), settings)(image, u)
    assert edges_last.max() > 0
    assert edges_first.max() == 0


def test_operations_draw_independently():
    # Whether one acts says nothing about whether another does.
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 0] = (255, 51, 0)
    settings = {"flip": {"probability": 0.5}, "grayscale": {"probability": 0.5}}
    operations = ("flip", "grayscale")
    view = definition.compose(operations, settings, image_size=2)
    views = _draw(
        lambda u: view(tf.constant(image), (0, 0, 2, 2), u),
        _view_draws(operations, 1000),
    )
    flipped = views[:, 0, 0, 0] == 0
    gray = (views[..., 0] == views[..., 1]).all(axis=(1, 2))
    table = [[(f & g).sum() for g in (gray, ~gray)] for f in (flipped, ~flipped)]
    assert np.min(table) > 150
    assert stats.chi2_contingency(table).pvalue > 1e-3


NO_DRAWS = np.zeros(0, np.float32)


def test_without_crop_the_whole_image_is_resized():
    image = _uint8_image(20, 24)
    expected = definition.crop_and_resize(image, (0, 0, 20, 24), (16, 16))
    view = _view(())(image, NO_DRAWS)
    np.testing.assert_array_equal(view, definition.to_uint8(expected))
    same = _view((), image_size=20)(image[:, :20], NO_DRAWS)
    np.testing.assert_array_equal(same, image[:, :20])


def test_a_view_shows_its_box():
    image, box = _uint8_image(40, 50), (7, 11, 20, 30)
    view = definition.compose(("crop",), COMPOSED, image_size=16)(image, box, NO_DRAWS)
    expected = definition.crop_and_resize(image, box, (16, 16))
    np.testing.assert_array_equal(view, definition.to_uint8(expected))
    part = definition.crop_and_resize(image[7:27, 11:41], (0, 0, 20, 30), (16, 16))
    np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("sampler", boxes.SAMPLERS)
def test_random_resized_crop_takes_the_box_of_its_sampler(sampler):
    image, settings = _uint8_image(40, 50), {"sampler": sampler, **AREA_AND_RATIO}
    result = definition.random_resized_crop(image, SEEDS[0], image_size=16, **settings)
    shape = tf.constant([40, 50, 3])
    box = definition.random_crop_box(shape, SEEDS[0], **settings)
    expected = definition.crop_and_resize(image, box, (16, 16))
    np.testing.assert_array_equal(result, expected)


def test_to_uint8_rounds_to_the_nearest_level():
    levels = np.arange(256)
    for shift in (0.0, 0.4, -0.4):
        values = ((levels + shift) / 255).astype(np.float32)
        np.testing.assert_array_equal(definition.to_uint8(values), levels)
    np.testing.assert_array_equal(definition.to_uint8([-0.3, 1.2]), [0, 255])
    levels = levels.astype(np.uint8)
    np.testing.assert_array_equal(
        definition.to_uint8(definition.to_float(levels)), levels
    )
