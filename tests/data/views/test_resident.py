"""Batches made on the accelerator are those of the host, on any number of devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simclr_settings import BLUR, CROP, JITTER

from simclr_jax import parallel
from simclr_jax.data import pipeline
from simclr_jax.data.sampling import order
from simclr_jax.data.sources import arrays
from simclr_jax.data.views import definition, resident
from simclr_jax.data.views.composition import Composition

SEED, COUNT, BATCH, SIZE = 3, 70, 16, 12  # four steps an epoch
SETTINGS = {
    "crop": CROP,
    "flip": {"probability": 0.5},
    "color_jitter": {"probability": 0.8, **JITTER},
    "grayscale": {"probability": 0.2},
    "blur": {"probability": 0.5, **BLUR, "kernel_fraction": 0.3},
}
VIEW = Composition(tuple(SETTINGS), SETTINGS, SIZE)
CROP = VIEW.crop_alone()


def _source(count=COUNT):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 20, 16, 3), np.uint8)
    return arrays.ArraySource(images, np.arange(count), name="arrays")


@functools.cache
def _compiled(num_devices, composition=VIEW, parts=1, count=COUNT):
    """(the program that makes a batch, the dataset where it wants it)."""
    mesh = parallel.create_mesh(jax.devices()[:num_devices])
    split, whole = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    batches = resident.ResidentBatches(
        composition=composition,
        seed=SEED,
        batch_size=BATCH,
        num_views=2,
        sharding=split,
        parts=parts,
    )
    images, labels = _source(count).arrays()
    dataset = parallel.put(whole, {"images": images, "labels": labels})
    function = jax.jit(batches, in_shardings=(whole, whole), out_shardings=split)
    return function.lower(dataset, jnp.int32(0)).compile(), dataset


def _made(step, num_devices=1, **settings):
    program, dataset = _compiled(num_devices, **settings)
    return jax.device_get(program(dataset, jnp.int32(step)))


def _on_host(step, composition=VIEW, count=COUNT):
    (batch,) = pipeline.train_batches(
        _source(count),
        composition,
        seed=SEED,
        batch_size=BATCH,
        start_step=step,
        stop_step=step + 1,
    )
    return batch


def _share_that_differs(found, expected):
    """Of pixels, none of which may differ by more than one level."""
    difference = np.abs(found["images"].astype(int) - expected["images"])
    assert difference.max() <= 1
    return np.mean(difference > 0)


# The first, the last of an epoch, the next one, and one after many epochs.
@pytest.mark.parametrize("step", [0, 3, 4, 10**6])
def test_a_batch_is_that_of_the_host(step):
    made, expected = _made(step), _on_host(step)
    np.testing.assert_array_equal(made["labels"], expected["labels"])
    assert made["images"].dtype == np.uint8
    assert made["images"].shape == (BATCH, 2, SIZE, SIZE, 3)
    # Values at the border between two levels are rounded to either; 0.05 % and less.
    assert _share_that_differs(made, expected) < 1e-3


def test_a_crop_alone_is_that_of_the_host():
    made, expected = _made(5, composition=CROP), _on_host(5, CROP)
    np.testing.assert_array_equal(made["labels"], expected["labels"])
    assert _share_that_differs(made, expected) < 1e-3


def test_whole_images_are_those_of_the_host():
    flip = Composition(("flip",), SETTINGS, SIZE)
    made, expected = _made(5, composition=flip), _on_host(5, flip)
    np.testing.assert_array_equal(made["labels"], expected["labels"])
    assert _share_that_differs(made, expected) < 1e-3


# Among 64 numbers, the permutation of few images walks on and on.
@pytest.mark.parametrize("count", [16, 33])
def test_the_order_is_that_of_the_host_for_few_images(count):
    settings = {"seed": SEED, "num_examples": count, "batch_size": BATCH}
    for step in (*range(100), 123_456):
        made = _made(step, composition=CROP, count=count)
        expected, _ = order.batch_indices(step, **settings)
        np.testing.assert_array_equal(made["labels"], expected)


@pytest.mark.parametrize("step", [0, 4, 10**6])
def test_eight_devices_make_the_batch_of_one(step):
    one, eight = _made(step), _made(step, num_devices=8)
    np.testing.assert_array_equal(eight["labels"], one["labels"])
    np.testing.assert_array_equal(eight["images"], one["images"])


def test_each_device_makes_its_own_images():
    program, dataset = _compiled(8)
    made = program(dataset, jnp.int32(0))
    assert made["images"].addressable_shards[3].data.shape == (2, 2, SIZE, SIZE, 3)
    moving = "all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
    lines = [line for line in program.as_text().splitlines() if re.search(moving, line)]
    assert not lines


@pytest.mark.parametrize("num_devices", [1, 2])
def test_views_made_in_parts_are_those_made_at_once(num_devices):
    for step in (0, 7):
        whole = _made(step)
        parts = _made(step, num_devices=num_devices, parts=4)
        np.testing.assert_array_equal(parts["labels"], whole["labels"])
        np.testing.assert_array_equal(parts["images"], whole["images"])


def test_crops_become_views_in_parts_too():
    crops = next(
        pipeline.train_batches(
            _source(), VIEW, seed=SEED, batch_size=BATCH, stop_step=1, host_crop=True
        )
    )
    made = [
        jax.jit(resident.in_parts(VIEW, parts))(crops["images"], crops["draws"], None)
        for parts in (1, 4)
    ]
    np.testing.assert_array_equal(made[1], made[0])
    rest = VIEW.without("crop")
    view = definition.compose(rest.operations, rest.settings, image_size=SIZE)
    box = (0, 0, SIZE, SIZE)
    for made_here, crop, uniform in zip(
        np.asarray(made[0][:4]).reshape(-1, SIZE, SIZE, 3),
        crops["images"][:4].reshape(-1, SIZE, SIZE, 3),
        crops["draws"][:4].reshape(-1, VIEW.num_draws),
        strict=True,
    ):
        expected = view(crop, box, uniform)
        np.testing.assert_allclose(made_here.astype(int), expected, atol=1)
