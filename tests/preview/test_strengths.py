"""A strength's label says what its draws do: against NumPy, SciPy and colorsys."""

import colorsys
import re

import numpy as np
import pytest
from scipy import ndimage

from simclr_jax.configs import base
from simclr_jax.preview import sections, strengths
from simclr_jax.preview.forms import Forms, alone
from simclr_jax.training.device_views import make_composition

SIDE = 16
_Y, _X = np.mgrid[:SIDE, :SIDE]
# Smooth, coloured, and far from 0 and 255.
IMAGE = np.stack([90 + 3 * _Y, 80 + 2 * _X + _Y, 150 - 2 * _X], axis=-1).astype(
    np.uint8
)


def swept(name, num=5, **settings):
    """(title, labels, tiles) of an operation's sweeps, made on the host."""
    config = base.get_config()
    config.image_size = SIDE
    config.augment.operations = (name,)
    config.augment[name].update(settings)
    composition = make_composition(config)
    form = Forms("host", "auto").host(alone(composition, name))
    if name == "crop":
        found = strengths.of_crop(IMAGE.shape[:2], composition.settings[name], num)
    else:
        found = strengths.of_operation(name, composition.settings[name], num)
    return {
        sweep.title: (
            sweep.labels,
            form(IMAGE, sections._boxes(sweep, IMAGE), sweep.draws),
        )
        for sweep in found
    }


def numbers(labels):
    return [float(re.search(r"[-+]?[\d.]+", label)[0]) for label in labels]


def levels(image):
    return np.rint(np.clip(image, 0, 255))


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_the_jitter_has_one_part_at_a_time(strength):
    found = swept("color_jitter", strength=strength, probability=0.0)
    image = IMAGE.astype(np.float64)
    mean = image.mean(axis=(0, 1))
    largest = image.max(axis=-1, keepdims=True)
    for title, change in (
        ("brightness", lambda f: image * f),
        ("contrast", lambda f: (image - mean) * f + mean),
        ("saturation", lambda f: largest - (largest - image) * f),
    ):
        labels, tiles = found[title]
        assert labels[0] == f"x {1 - 0.8 * strength:.2f}"
        assert labels[-1] == f"x {1 + 0.8 * strength:.2f}"
        for label, factor, tile in zip(labels, numbers(labels), tiles, strict=True):
            np.testing.assert_allclose(
                tile, levels(change(factor)), atol=1, err_msg=label
            )
        np.testing.assert_array_equal(tiles[2], IMAGE)  # the neutral one
    labels, tiles = found["hue"]
    assert labels[-1] == f"+{0.2 * strength:.2f} turns"
    np.testing.assert_array_equal(tiles[2], IMAGE)
    for turns, tile in zip(np.linspace(-1, 1, 5), tiles, strict=True):
        expected = levels(255 * turned(image / 255, 0.2 * strength * turns))
        np.testing.assert_allclose(tile, expected, atol=1)


def turned(image, turns):
    """The hue by colorsys, pixel by pixel."""
    pixels = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
    rotated = [colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in pixels]
    return np.array(rotated).reshape(image.shape)


def test_additive_brightness_adds():
    labels, tiles = swept("color_jitter", brightness_mode="additive", brightness=0.2)[
        "brightness"
    ]
    assert labels[0] == "-0.20"
    assert labels[-1] == "+0.20"
    for added, tile in zip(numbers(labels), tiles, strict=True):
        np.testing.assert_allclose(tile, levels(IMAGE + 255.0 * added), atol=1)


@pytest.mark.parametrize("ends", [(0.1, 2.0), (0.5, 0.5), (1.0, 3.0)])
def test_blurs_have_the_sigma_of_their_label(ends):
    low, high = ends
    changes = {"sigma_min": low, "sigma_max": high, "kernel_fraction": 0.5}
    ((labels, tiles),) = swept("blur", **changes).values()
    assert labels[0] == f"sigma {low:.2f}"
    assert labels[-1] == f"sigma {high:.2f}"
    for sigma, tile in zip(np.linspace(low, high, 5), tiles, strict=True):
        expected = ndimage.gaussian_filter(
            IMAGE.astype(np.float64), sigma, mode="constant", radius=4, axes=(0, 1)
        )
        np.testing.assert_allclose(tile, levels(expected), atol=1)


@pytest.mark.parametrize(
    ("sampler", "smallest"), [("reference", "10 %"), ("torchvision", "8 %")]
)
def test_crops_have_the_area_of_their_label(sampler, smallest):
    found = swept("crop", sampler=sampler)
    labels, tiles = found["crop: area"]
    assert labels[0] == smallest
    assert labels[-1] == "100 %"
    np.testing.assert_array_equal(tiles[-1], IMAGE)
    # Of a slope, a crop of area a shows the share sqrt(a).
    spread = np.ptp(tiles[..., 0].astype(float), axis=(1, 2)) / np.ptp(IMAGE[..., 0])
    shares = np.sqrt(np.array(numbers(labels)) / 100)
    np.testing.assert_allclose(spread, shares, atol=0.1)
    labels, _ = found["crop: width / height"]
    assert labels == ["0.75", "0.87", "1.00", "1.15", "1.33"]


@pytest.mark.parametrize("shape", [(30, 90), (500, 20), (64, 64)])
def test_boxes_lie_in_images_of_any_shape(shape):
    settings = base.get_config().augment.crop.to_dict()
    del settings["antialias"]
    for sweep in strengths.of_crop(shape, settings, 6):
        ends = sweep.boxes[:, :2] + sweep.boxes[:, 2:]
        assert (sweep.boxes >= 0).all()
        assert (sweep.boxes[:, 2:] > 0).all()
        assert (ends <= shape).all()
    for (_, _, height, width), ratio in zip(
        sweep.boxes, numbers(sweep.labels), strict=True
    ):
        assert width / height == pytest.approx(ratio, rel=0.05)


def test_quarter_turns_flips_and_greys():
    ((labels, tiles),) = swept("rotation").values()
    assert labels == ["0°", "90°", "180°", "270°"]
    for turns, tile in enumerate(tiles):
        np.testing.assert_array_equal(tile, np.rot90(IMAGE, turns))
    ((labels, tiles),) = swept("flip", probability=0.0).values()
    assert labels == ["applied"]
    np.testing.assert_array_equal(tiles[0], IMAGE[:, ::-1])
    ((_, tiles),) = swept("grayscale").values()
    gray = IMAGE @ np.array([0.2989, 0.587, 0.114])
    np.testing.assert_allclose(tiles[0], np.repeat(gray[..., None], 3, -1), atol=1)


def test_an_operation_of_which_nothing_is_known_shows_some_draws():
    ((labels, tiles),) = swept("cutout", num=4, size_fraction=0.5).values()
    assert labels == ["draw 1", "draw 2", "draw 3", "draw 4"]
    holes = (tiles == 0).all(axis=-1)
    assert holes.any(axis=(1, 2)).all()
    assert len(np.unique(holes, axis=0)) > 2
