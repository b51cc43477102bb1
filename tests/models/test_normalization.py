"""Mean and standard deviation of pixels, in all forms in which they are given."""

import numpy as np
import pytest

from simclr_jax import models
from simclr_jax.config import resolve, rules
from simclr_jax.configs import base
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.models import normalization
from simclr_jax.runs import directory
from simclr_jax.training import pixel_moments
from simclr_jax.weights import convert

IMAGENET = "0.485,0.456,0.406/0.229,0.224,0.225"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("none", "none"),
        ("0/1", "none"),
        ("0.0,0,0/1,1,1.0", "none"),
        ("imagenet", "imagenet"),
        (IMAGENET, "imagenet"),
        (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "imagenet"),
        ("0.5", "0.5/0.5"),
        ("0.5/0.5", "0.5/0.5"),
        (".5,0.50, 5e-1/0.5", "0.5/0.5"),
        ((0.5, 0.25), "0.5/0.25"),
        ([[0.1, 0.2, 0.3], 1], "0.1,0.2,0.3/1.0"),
        ("0.4914,0.4822,0.4465/0.247,0.2435,0.2616",) * 2,
    ],
)
def test_every_form_has_one_text(given, text):
    assert normalization.canonical(given) == text
    assert normalization.canonical(text) == text
    assert normalization.moments(text) == normalization.moments(given)


@pytest.mark.parametrize(
    "given",
    [
        *("", "cifar", "0.5/", "/0.5", "0.5/0", "0.5/-0.1", "-0.1/0.5", "0.5/nan"),
        *("nan/0.5", "0.5,0.5/0.5", "0.5/0.5/0.5", "127.5/127.5", "0.5/1.5", "0.5;0.5"),
        *("0.5,0.5,0.5", "inf/1", None, 7, (0.5,), ((0.1, 0.2), 0.5), "dataset"),
    ],
)
def test_what_cannot_be_one_is_refused_with_the_rule(given):
    with pytest.raises(ValueError, match="must be none, imagenet, or MEAN/STD"):
        normalization.canonical(given)
    with pytest.raises(ValueError, match=r"normalization=.*MEAN/STD"):
        models.create_encoder(depth=10, normalization=given)
    config = base.get_config()
    if given != "dataset" and isinstance(given, str):
        config.encoder.normalization = given
        with pytest.raises(ConfigError, match=r"encoder.normalization=.*MEAN/STD"):
            rules.validate(config)
        with pytest.raises(ConfigError, match=r"--normalization=.*MEAN/STD"):
            convert._canonical(given)


@pytest.mark.parametrize("text", ["0.5/0.5", IMAGENET, "0.1,0.2,0.3/0.4"])
def test_the_encoder_subtracts_and_divides(text):
    encoder = models.create_encoder(depth=10, normalization=text)
    mean, std = normalization.moments(text)
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    # Before the stem, so a stem is all that runs.
    seen = []

    class Stop(Exception):
        pass

    def stem(*_, **__):
        def record(x, *_):
            seen.append(x)
            raise Stop

        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simclr_jax.models.resnet.Stem", stem)
        with pytest.raises(Stop):
            encoder.apply({}, images)
    expected = (images - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-5, atol=1e-6)


def test_a_config_gets_the_one_text():
    config = base.get_config()
    config.encoder.normalization = "0.5"
    rules.validate(config)
    resolved = resolve.resolve(config, num_examples=8192)
    assert resolved.encoder.normalization == "0.5/0.5"


# Measured -----------------------------------------------------------------------------


def _source(images):
    return ArraySource(images, name="memory")


def _config():
    config = base.get_config()
    config.batch.batch_size = 4
    config.encoder.normalization = "dataset"
    rules.validate(config)
    return config


def test_the_dataset_is_measured():
    generator = np.random.default_rng(0)
    scale = np.array([255, 128, 60])
    images = (generator.random((40, 12, 9, 3)) ** 2 * scale).astype(np.uint8)
    resolved = pixel_moments.resolve(_config(), _source(images))
    mean, std = normalization.moments(resolved.encoder.normalization)
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=6e-5)
    np.testing.assert_allclose(std, pixels.std(axis=0), atol=6e-5)


def test_of_a_large_dataset_all_parts_are_looked_at(monkeypatch):
    monkeypatch.setattr(pixel_moments, "_MOST_IMAGES", 5)
    images = np.zeros((100, 4, 4, 3), np.uint8)
    images[50:], images[:, 0] = 200, 255
    mean, _ = normalization.moments(pixel_moments.measure(_source(images)))
    assert 0.3 < mean[0] < 0.8


def test_images_of_one_colour_have_no_deviation():
    images = np.full((8, 4, 4, 3), 9, np.uint8)
    with pytest.raises(DataError, match=r"dataset memory: .*deviations \[0.0, 0.0"):
        pixel_moments.measure(_source(images))


def test_a_run_that_has_begun_keeps_its_numbers(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 4, 4, 3), np.uint8)
    workdir = str(tmp_path)
    begun = pixel_moments.resolve(_config(), _source(images))
    directory.write_config(workdir, begun)
    again = directory.as_recorded(_config(), workdir)
    assert again.encoder.normalization == begun.encoder.normalization
    # One that was not measured is another run, which `directory.check` refuses.
    begun.encoder.normalization = "none"
    directory.write_config(workdir, begun)
    assert directory.as_recorded(_config(), workdir).encoder.normalization == "dataset"
