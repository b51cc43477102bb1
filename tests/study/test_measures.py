"""Transformations against NumPy, and what cells share."""

import numpy as np
import pytest

from simclr_jax.study import cells, measures, shared
from simclr_jax.training import compiling

_GRAY = (0.2989, 0.5870, 0.1140)


def batch(seed, count=24, side=6):
    images = np.random.default_rng(seed).random((count, side, side, 3), np.float32)
    labels, mask = np.zeros(count, np.int32), np.ones(count, bool)
    return {"images": images, "labels": labels, "mask": mask}


def gradient(image):
    """Sobel's magnitude, in loops of float64."""
    padded = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)), "reflect")
    kernel = np.outer([1, 2, 1], [-1, 0, 1])
    out = np.zeros(image.shape)
    for y, x in np.ndindex(image.shape[:2]):
        patch = padded[y : y + 3, x : x + 3]
        dx = np.einsum("ij,ijc->c", kernel, patch)
        dy = np.einsum("ij,ijc->c", kernel.T, patch)
        out[y, x] = np.minimum(np.hypot(dx, dy) / 4, 1)
    return out


EXPECTED = {
    "grayscale": lambda x: np.repeat((x @ np.array(_GRAY))[..., None], 3, -1),
    "sobel": gradient,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_half_of_the_images_are_transformed(name):
    given = batch(3)
    (found,) = measures.transformed(iter([given]), name, 7)
    assert set(found["labels"]) == {0, 1}
    for image, made, label in zip(
        given["images"], found["images"], found["labels"], strict=True
    ):
        expected = EXPECTED[name](image) if label else image
        np.testing.assert_allclose(made, expected, atol=1e-5)


def test_rotations():
    given = batch(4)
    (found,) = measures.transformed(iter([given]), "rotation", 0)
    assert set(found["labels"]) == {0, 1, 2, 3}
    for image, made, label in zip(
        given["images"], found["images"], found["labels"], strict=True
    ):
        np.testing.assert_array_equal(made, np.rot90(image, label))


def test_noise_has_its_deviation_and_stays_in_range():
    given = batch(5, count=40, side=16)
    (found,) = measures.transformed(iter([given]), "corrupted", 0)
    noisy = found["labels"] == 1
    difference = found["images"] - given["images"]
    assert not difference[~noisy].any()
    inside = (given["images"] > 0.3) & (given["images"] < 0.7)
    assert np.std(difference[noisy][inside[noisy]]) == pytest.approx(0.1, rel=0.05)
    assert found["images"].min() >= 0
    assert found["images"].max() <= 1


def test_draws_differ_by_batch_and_seed_and_repeat():
    def labels(seed):
        pair = iter([batch(0), batch(0)])
        return [b["labels"].tolist() for b in measures.transformed(pair, "sobel", seed)]

    assert labels(1) == labels(1)
    assert labels(1)[0] != labels(1)[1]
    assert labels(1) != labels(2)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (64, 16, 16, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(64) % 4
    np.savez(path, **arrays)
    return f"npz:{path}"


SMALL = (
    *("data.split=train", "evaluation.train_split=train", "evaluation.batch_size=32"),
    *("batch.batch_size=32", "encoder.width=0.0625", "image_size=8"),
    *("schedule.train_steps=2", "schedule.warmup_steps=1", "evaluation.knn_k=5"),
)


def test_cells_share_images_and_programs(images):
    overrides = [f"data.dataset={images}", *SMALL]
    study = cells.open_study("augmentation_pairs", "minutes", overrides)
    made = cells.expand(study, 2)
    between = shared.Shared()
    first, other_seed, other_views = (between.job(made[n].config) for n in (0, 1, 2))
    assert first.source is other_seed.source is other_views.source
    assert first.parts is other_seed.parts is other_views.parts
    assert first.config.augment != other_views.config.augment
    assert (first.config.seed, other_seed.config.seed) == (0, 1)
    temperatures = cells.open_study("temperature", "minutes", overrides)
    another = between.job(cells.expand(temperatures, 1)[0].config)
    assert another.source is first.source
    assert another.parts is not first.parts
    step = compiling.compile_step(first.parts, first.mesh)
    assert step is compiling.compile_step(other_views.parts, first.mesh)
    assert step is not compiling.compile_step(another.parts, first.mesh)
    dataset = between.dataset(first.config)
    assert dataset is between.dataset(another.config)
    assert dataset.test.num_examples == 64
