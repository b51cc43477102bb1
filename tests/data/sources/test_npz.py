"""Layouts of .npz files: what is recognized, and what the rest is told."""

import numpy as np
import pytest

from simclr_jax.data.sources import registry
from simclr_jax.errors import DataError


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _open(folder, split="train", **arrays):
    np.savez(folder / "x.npz", **arrays)
    return registry.open_source(f"npz:{folder}/x.npz", split=split)


def _read(source):
    return source.read(np.arange(source.num_examples))


def _message(folder, split="train", **arrays):
    with pytest.raises(DataError) as caught:
        _open(folder, split, **arrays)
    assert "\n" not in str(caught.value)
    assert "x.npz" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x_{}", "y_{}"),  # Keras
        ("{}_images", "{}_labels"),  # MedMNIST
        ("X_{}", "Y_{}"),
        ("{}_data", "{}_target"),
        ("{}x", "{}y"),
        ("images_{}", "label_{}"),
    ],
)
def test_arrays_named_by_splits(images, labels, tmp_path):
    arrays = {}
    for number, split in enumerate(("train", "test")):
        arrays[images.format(split)] = _noise(4 - number, 5, 6, seed=number)
        arrays[labels.format(split)] = np.arange(4 - number)[:, None] + number
    for number, split in enumerate(("train", "test")):
        source = _open(tmp_path, split, **arrays)
        found, numbers = _read(source)
        expected = arrays[images.format(split)]
        np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, -1))
        assert numbers.tolist() == (np.arange(4 - number) + number).tolist()
        assert source.num_classes == 4, "of all splits"
    message = _message(tmp_path, "validation", **arrays)
    assert "holds the splits train, test" in message


def test_a_split_has_several_names(tmp_path):
    arrays = {"train_images": _noise(3, 4, 4, 3), "val_images": _noise(2, 4, 4, 3)}
    assert _open(tmp_path, "validation", **arrays).num_examples == 2
    assert _open(tmp_path, "valid", **arrays).num_classes is None


@pytest.mark.parametrize("names", [("data", "labels"), ("X", "y"), ("arr_0", "arr_1")])
def test_arrays_without_splits(names, tmp_path):
    images = _noise(5, 4, 4, 3)
    source = _open(
        tmp_path, "anything", **dict(zip(names, (images, np.arange(5)), strict=True))
    )
    found, labels = _read(source)
    np.testing.assert_array_equal(found, images)
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_cifar_rows_are_planes(tmp_path):
    images = _noise(7, 32, 32, 3)
    rows = images.transpose(0, 3, 1, 2).reshape(7, 3072)
    np.testing.assert_array_equal(_read(_open(tmp_path, data=rows))[0], images)


def test_rows_of_pixels_are_told_by_their_smoothness(tmp_path):
    ramp = np.arange(0, 256, 8, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp, ramp[:, None], 200), -1)
    images = np.stack([image, 255 - image]).astype(np.uint8)
    for rows in (images, images.transpose(0, 3, 1, 2)):
        found, _ = _read(_open(tmp_path, data=rows.reshape(2, -1)))
        np.testing.assert_array_equal(found, images)


def test_grey_rows_and_channels_first(tmp_path):
    grey = _noise(3, 9, 9, 1)
    for array in (grey.reshape(3, 81), grey[..., 0], grey.transpose(0, 3, 1, 2)):
        found, _ = _read(_open(tmp_path, images=array))
        np.testing.assert_array_equal(found, np.repeat(grey, 3, -1))
    colour = _noise(3, 5, 6, 3)
    found, _ = _read(_open(tmp_path, images=colour.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(found, colour)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [("float32", 255), ("float64", 1), ("float16", 1), ("int64", 1), ("uint16", 1)],
)
def test_other_numbers_become_bytes(dtype, scale, tmp_path):
    images = _noise(4, 6, 6, 3)
    given = (images / scale).astype(dtype)
    found, _ = _read(_open(tmp_path, images=given))
    np.testing.assert_array_equal(found, images)


def test_booleans_are_black_and_white(tmp_path):
    found, _ = _read(_open(tmp_path, images=np.eye(4, dtype=bool)[None]))
    assert found[0, :, :, 0].tolist() == (255 * np.eye(4)).tolist()


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        (_noise(2, 4, 4, 3) / 127.5 - 1, "normalized"),
        (np.full((2, 4, 4, 3), np.nan), "from 0 to 1 or"),
        (np.full((2, 4, 4, 3), 1.2), "from 0 to 1 or"),
        (np.full((2, 4, 4, 3), 4095, np.uint16), "scale them"),
        (np.ones((2, 4, 4, 3), np.int64), "scale them"),
        (_noise(2, 4, 4, 4), "[..., :3]"),
        (_noise(8, 8, 3, 5), "moveaxis"),
        (_noise(8, 8, 3), "[N, H, W, 3]"),
        (_noise(2, 1000), "rows of 1000 numbers"),
        (np.array([_noise(4, 4, 3), None], object), "plain arrays"),
        (np.full((2, 4, 4, 3), 1j), "uint8"),
    ],
)
def test_what_cannot_be_told_is_explained(images, rule, tmp_path):
    assert rule in _message(tmp_path, images=images)


def test_other_names_are_listed_with_the_layouts(tmp_path):
    message = _message(tmp_path, pictures=_noise(2, 4, 4, 3), answers=np.arange(2))
    for part in ("answers, pictures", "x_train", "train_images", "data and labels"):
        assert part in message


def test_labels(tmp_path, caplog):
    images = _noise(3, 4, 4, 3)
    for labels in (np.eye(3), np.array([0.0, 1.0, 2.0]), np.arange(3)[:, None]):
        source = _open(tmp_path, images=images, labels=labels)
        assert _read(source)[1].tolist() == [0, 1, 2]
    named = _open(
        tmp_path,
        x_train=images,
        y_train=np.array(["cat", "ant", "cat"]),
        x_test=images[:1],
        y_test=np.array(["bee"]),
    )
    assert named.class_names == ["ant", "bee", "cat"]
    assert _read(named)[1].tolist() == [2, 0, 2]
    assert named.num_classes == 3
    several = _open(tmp_path, images=images, labels=np.ones((3, 14), int))
    assert several.num_classes is None
    assert "(3, 14), several for an image" in caplog.text
    assert "integer" in _message(tmp_path, images=images, labels=[0.5, 1, 2])


def test_arrays_of_objects_are_not_read_but_may_be_there(tmp_path):
    others = {"notes": np.array([{}], object), "images": _noise(2, 4, 4, 3)}
    assert _open(tmp_path, **others).num_examples == 2
