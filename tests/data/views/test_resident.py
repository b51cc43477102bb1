"""Batches made on the accelerator are those of the host, on any number of devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first
from PIL import Image
from simclr_settings import BLUR, CROP, JITTER

from simclr_jax import parallel
from simclr_jax.data import pipeline
from simclr_jax.data.sampling import order
from simclr_jax.data.sources import arrays, folder
from simclr_jax.data.views import definition, device, resident
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
@pytest.mark.parametrize("count", first(1, [33, 16]))
def test_the_order_is_that_of_the_host_for_few_images(count):
    settings = {"seed": SEED, "num_examples": count, "batch_size": BATCH}
    for step in (*range(100), 123_456):
        made = _made(step, composition=CROP, count=count)
        expected, _ = order.batch_indices(step, **settings)
        np.testing.assert_array_equal(made["labels"], expected)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 1])
def test_views_made_in_parts_are_those_made_at_once(num_devices):
    for step in (0, 7):
        whole = _made(step)
        parts = _made(step, num_devices=num_devices, parts=4)
        np.testing.assert_array_equal(parts["labels"], whole["labels"])
        np.testing.assert_array_equal(parts["images"], whole["images"])


@pytest.mark.slow
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


# The same dataset as files, in memory and on the accelerator -----------------------


@pytest.mark.parametrize("sampler", ["reference", "torchvision"])
@pytest.mark.slow
def test_views_do_not_depend_on_where_images_lie(sampler, tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, 20, 16, 3), np.uint8)
    for number, image in enumerate(images):
        (tmp_path / f"{number:03}").mkdir()
        Image.fromarray(image).save(tmp_path / f"{number:03}" / "image.png")
    files = folder.FolderSource(str(tmp_path))
    held = arrays.ArraySource(images, np.arange(COUNT), name="arrays")
    crop = {**SETTINGS["crop"], "sampler": sampler}
    composition = Composition(tuple(SETTINGS), {**SETTINGS, "crop": crop}, SIZE)

    def batches(source, composition):
        return list(
            pipeline.train_batches(
                source, composition, seed=SEED, batch_size=BATCH, stop_step=6
            )
        )

    # Crops alone come from the same code on the host, so equal pixels mean equal boxes.
    crops = composition.crop_alone()
    for of_files, of_memory in zip(
        batches(files, crops), batches(held, crops), strict=True
    ):
        np.testing.assert_array_equal(of_files["labels"], of_memory["labels"])
        np.testing.assert_array_equal(of_files["images"], of_memory["images"])

    mesh = parallel.create_mesh(jax.devices()[:1])
    resident_batches = jax.jit(
        resident.ResidentBatches(
            composition=composition,
            seed=SEED,
            batch_size=BATCH,
            num_views=2,
            sharding=parallel.batch_sharding(mesh),
        )
    )
    dataset = {"images": images, "labels": np.arange(COUNT, dtype=np.int32)}
    box_draws = composition.box_draws((20, 16))
    draw_boxes = jax.jit(lambda key: device.random_boxes(key, box_draws))
    for step, (of_files, of_memory) in enumerate(
        zip(batches(files, composition), batches(held, composition), strict=True)
    ):
        on_device = resident_batches(dataset, jnp.int32(step))
        expected = of_files["images"].astype(int)
        for batch in (of_memory, on_device):
            np.testing.assert_array_equal(batch["labels"], of_files["labels"])
            np.testing.assert_allclose(batch["images"], expected, rtol=0, atol=1)
        indices, epochs = order.batch_indices(
            step, seed=SEED, num_examples=COUNT, batch_size=BATCH
        )
        key = order.view_keys(
            np.uint32(indices), np.uint32(epochs), seed=SEED, num_views=2
        )
        expected = composition.draw_boxes(key, (20, 16))
        np.testing.assert_array_equal(draw_boxes(key), expected)
