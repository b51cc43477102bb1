"""Previews show the views of training, each operation, and both implementations."""

import sys

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import rules
from simclr_jax.configs import smoke
from simclr_jax.data import optional
from simclr_jax.data.sampling import draws
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.data.views import definition, host_form
from simclr_jax.errors import ConfigError, DataError
from simclr_jax.preview import layout, picture, sections
from simclr_jax.preview.forms import Forms
from simclr_jax.preview.layout import Row, Section
from simclr_jax.training import input_pipeline, step_views
from simclr_jax.training.device_views import make_composition

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 10, 12, 3), np.uint8)
SOURCE = ArraySource(IMAGES, np.arange(20), name="arrays")


def make_config(**changes):
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "batch.batch_size": 8,
            "schedule.train_steps": 6,
            # Nothing that takes long to compile.
            "augment.operations": ("crop", "flip"),
            **changes,
        }
    )
    rules.validate(config)
    return config


def sample_of(config, num_views=2, source=SOURCE):
    return sections.sample(
        source,
        make_composition(config),
        step_views.evaluation_preprocessing(config),
        seed=config.seed,
        num_images=8,
        num_views=num_views,
    )


def forms_of(config):
    return Forms(config.augment.placement, config.augment.host_views)


def shown(section):
    """The tiles of each row after the unchanged image."""
    return [np.stack(row.tiles[1:]) for row in section.rows]


@pytest.mark.parametrize("placement", ["host", "host_crop", "accelerator"])
def test_a_preview_shows_the_first_views_of_training(placement):
    config = make_config(**{"augment.placement": placement})
    section = sections.views(sample_of(config), forms_of(config), 2)
    # All placements make the same views, here without rounding.
    config.augment.placement = "host"
    batches = input_pipeline.local_batches(config, SOURCE, start_step=0)
    expected = next(batches)["images"]
    np.testing.assert_array_equal(shown(section), expected)
    pairs = sections.pairs(sample_of(config, num_views=3), forms_of(config), 3)
    np.testing.assert_array_equal(
        np.concatenate([row.tiles for row in pairs.rows]),
        expected.reshape(-1, 8, 8, 3),
    )


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["host", "host_crop", "accelerator"])
def test_a_preview_of_all_operations_shows_the_views_of_training(placement):
    operations = tuple(name for name in draws.COUNTS if name != "noise")
    changes = {"augment.operations": operations, "augment.blur.kernel_fraction": 0.5}
    config = make_config(**{**changes, "augment.placement": placement})
    section = sections.views(sample_of(config), forms_of(config), 2)
    config.augment.placement = "host"
    batches = input_pipeline.local_batches(config, SOURCE, start_step=0)
    expected = next(batches)["images"].astype(int)
    # Rounding, and what the edges make of it.
    assert np.abs(shown(section) - expected).max() <= (0 if placement == "host" else 2)


def test_every_operation_of_the_composition_has_its_rows():
    names = tuple(draws.COUNTS)
    config = make_config(**{"augment.operations": names})
    composition = make_composition(config)
    swept = [
        sweep.operation
        for name in names[1:]
        for sweep in sections.strengths.of_operation(
            name, composition.settings[name], 5
        )
    ]
    assert set(swept) == {*names} - {"crop"}
    assert swept.count("color_jitter") == 4


def test_an_operation_added_by_one_function_and_one_line_is_shown(monkeypatch):
    """The preview has no list of its own."""

    def negative(image, u, *, probability, level_min, level_max):
        del probability
        level = draws.between(u[1], level_min, level_max)
        return level * (1 - image) + (1 - level) * image

    monkeypatch.setitem(draws.COUNTS, "negative", 2)
    monkeypatch.setitem(definition.OPERATIONS, "negative", negative)
    config = make_config()
    settings = {"probability": 0.5, "level_min": 0.0, "level_max": 1.0}
    with config.unlocked():
        config.augment.negative = settings
    config.augment.operations = ("flip", "negative")
    sample = sample_of(config)
    section = sections.operations(sample, forms_of(config), 2)
    assert [row.title for row in section.rows] == ["flip", "negative"]
    row = section.rows[1]
    assert row.labels[1:3] == ["level 0.00", "level 0.17"]
    np.testing.assert_array_equal(row.tiles[1], row.tiles[0])
    np.testing.assert_array_equal(row.tiles[-1], 255 - row.tiles[0])
    compared = sections.host_and_device(sample, forms_of(config), 2)
    assert compared.note == "Left out: 'negative' has no form for devices"
    # On the device alone there is no way to make it.
    config.augment.placement = "accelerator"
    with pytest.raises(sections.NotHere, match="'negative' has no form"):
        sections.views(sample, forms_of(config), 2)


def test_host_and_device_are_beside_each_other_with_their_difference(monkeypatch):
    config = make_config()
    sample = sample_of(config, num_views=3)
    section = sections.host_and_device(sample, forms_of(config), 3)
    titles = [row.title for row in section.rows]
    assert titles[:3] == [
        "crop: area\nequal",
        "crop: width / height\nequal",
        "flip\nequal",
    ]
    for row in section.rows:
        np.testing.assert_array_equal(row.tiles[::2], row.tiles[1::2])

    device = Forms.device

    def one_level_off(self, composition):
        form = device(self, composition)
        return lambda *arguments: form(*arguments) ^ 1

    monkeypatch.setattr(Forms, "device", one_level_off)
    section = sections.host_and_device(sample, forms_of(config), 3)
    assert {row.title.split("\n")[1] for row in section.rows} == {
        "at most 1 of 255 apart"
    }


def test_noise_is_said_to_differ():
    tiles = np.zeros((2, 8, 8, 3), np.uint8)
    row = sections._compared("noise", ["a", "b"], tiles, tiles + 9, "flip", "noise")
    assert row.title == "noise\ndraws differ: noise\nof each one's own"


def test_without_a_way_to_views_on_the_host_the_device_shows_its_own(
    tmp_path, monkeypatch
):
    for library in ("tensorflow", "numba"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(optional, "is_installed", lambda package: False)
    monkeypatch.setattr(host_form, "unavailable", lambda: "ImportError: no numba")
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=np.arange(20))
    config = make_config(
        **{
            "data.dataset": f"npz:{tmp_path}/data.npz",
            "augment.placement": "accelerator",
        }
    )
    path = tmp_path / "views.png"
    show = tuple(sections.SECTIONS)
    picture.write_preview(config, str(path), show=show, num_images=4, num_views=2)
    section = sections.host_and_device(sample_of(config), forms_of(config), 2)
    assert "host makes no views here: TensorFlow is not installed" in section.note
    assert not section.rows
    found = np.asarray(Image.open(path))
    assert found.shape[0] > 8 * 96
    assert tuple(found[0, 0]) == layout._BACKGROUND


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "words"),
    [
        (
            {},
            {"show": ["views", "all"]},
            ConfigError,
            "--show=all: must be one or more",
        ),
        ({}, {"num_images": 21}, DataError, "has only 20 images"),
    ],
)
def test_what_cannot_be_drawn(changes, arguments, error, words, tmp_path):
    np.savez(tmp_path / "data.npz", images=IMAGES, labels=np.arange(20))
    config = make_config(**{"data.dataset": f"npz:{tmp_path}/data.npz"} | changes)
    arguments = {"path": "a.png", "num_images": 2, "num_views": 2} | arguments
    show = arguments.pop("show", ["views"])
    with pytest.raises(error, match=words):
        picture.write_preview(config, show=show, **arguments)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no/folder/views.png", "there is no folder .*/no/folder"),
        ("views.psd2", "must end with the suffix of a format"),
        ("views.xbm", "must end with .*cannot write mode RGB"),
        ("views", "must end with the suffix of a format"),
        ("folder.png", "must be a file, and is a folder"),
        ("/dev/views.png/a.png", "there is no folder /dev/views.png"),
    ],
)
def test_the_output_is_checked_before_the_work(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    config = make_config(**{"data.dataset": "npz:not_opened.npz"})
    with pytest.raises(ConfigError, match=f"--output={path}: {words}"):
        picture.write_preview(config, path, show=["views"], num_images=2, num_views=2)


def test_tiles_and_texts_keep_their_distance():
    """Each tile is in the picture, whole and enlarged, and no text runs over one."""
    colours = np.random.default_rng(1).integers(60, 200, (7, 3), np.uint8)
    tiles = [np.broadcast_to(colour, (40, 40, 3)) for colour in colours]
    rows = [
        Row(tiles[:4], "a long title\nand more", ["x 1.00"] * 4, group=2),
        Row(tiles[4:], "", ["first", "second", "third"]),
    ]
    section = Section("Title", "word " * 80, rows)
    found = np.asarray(layout.draw([section, section]))
    side = 3 * 40  # at least 96
    for colour in colours:
        ys, xs = np.nonzero((found == colour).all(axis=-1))
        # Twice, one below the other.
        assert len(ys) == 2 * side**2
        assert xs.max() - xs.min() == side - 1
    # The margin is empty.
    for edge in (found[:20], found[-20:], found[:, :20], found[:, -20:]):
        assert (edge == layout._BACKGROUND).all()
