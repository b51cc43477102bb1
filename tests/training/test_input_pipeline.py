"""What a config makes of a dataset: pixels in memory, buffers, batches."""

import itertools
import types

import jax
import numpy as np
import pytest
from cases import first
from PIL import Image
from tfds_files import prepare

from simclr_jax import parallel
from simclr_jax.configs import smoke
from simclr_jax.data.sampling import draws, order
from simclr_jax.data.sources import registry, subsets
from simclr_jax.data.sources.arrays import ArraySource
from simclr_jax.errors import DataError
from simclr_jax.evaluation import protocols
from simclr_jax.runs.quarantine import FILE_NAME
from simclr_jax.training import device_views, input_pipeline


def make_config(**overrides):
    config = smoke.get_config()
    config.update_from_flattened_dict(
        {
            "image_size": 8,
            "batch.batch_size": 8,
            "schedule.train_steps": 6,
            # Nothing that takes long to compile.
            "augment.operations": ("crop", "flip"),
            **overrides,
        }
    )
    return config


def arrays(count=20):
    images = np.random.default_rng(0).integers(0, 256, (count, 10, 12, 3), np.uint8)
    return ArraySource(images, np.arange(count), name="arrays")


def assert_refused(config, source, *parts):
    with pytest.raises(DataError) as caught:
        input_pipeline.hold_in_memory(config, source)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("device", ["host", "host_crop", "accelerator"])
def test_small_images_of_one_size_are_held_in_memory(device, tmp_path):
    _, images = prepare(tmp_path)
    config = make_config(
        **{
            "augment.placement": device,
            "data.dataset": "noise",
            "data.data_dir": str(tmp_path),
        }
    )
    held = input_pipeline.hold_in_memory(
        config, input_pipeline.open_source(config, "train")
    )
    assert isinstance(held, ArraySource)
    np.testing.assert_array_equal(held.arrays()[0], images)


@pytest.mark.parametrize("device", ["host", "host_crop"])
def test_what_is_not_to_be_held_is_read_as_it_is(device, tmp_path):
    prepare(tmp_path)
    changes = {"augment.placement": device, "data.in_memory_mb": 0}
    source = registry.open_source("noise", split="train", data_dir=str(tmp_path))
    assert input_pipeline.hold_in_memory(make_config(**changes), source) is source
    large = registry.open_source("synthetic:224", split="train")
    config = make_config(**{"augment.placement": device})
    assert input_pipeline.hold_in_memory(config, large) is large


def test_an_accelerator_holds_images_of_one_size_only(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "2.png")
    config = make_config(**{"augment.placement": "accelerator"})
    folder = registry.open_source(f"folder:{tmp_path}", split="all")
    assert_refused(
        config,
        folder,
        "config.augment.placement='accelerator'",
        f"the images of folder:{tmp_path} have different sizes",
        "'host_crop'",
    )
    config.augment.placement = "host_crop"
    held = input_pipeline.hold_in_memory(config, folder)
    assert [image.shape for image in held.pixels([0, 1])] == [(9, 9, 3), (8, 9, 3)]
    config.data.in_memory_mb = 0
    assert input_pipeline.hold_in_memory(config, folder) is folder


def test_an_accelerator_holds_no_more_than_it_may():
    config = make_config(**{"augment.placement": "accelerator", "data.in_memory_mb": 0})
    said = "images of arrays take more than config.data.in_memory_mb=0"
    assert_refused(config, arrays(), "config.augment.placement='accelerator'", said)


def test_an_accelerator_holds_no_images_that_are_made_up():
    config = make_config(**{"augment.placement": "accelerator"})
    synthetic = registry.open_source("synthetic:8", split="train")
    assert_refused(config, synthetic, "dataset synthetic: repeats 64 synthetic images")


def test_buffers_are_those_of_the_config():
    changes = {"data.threads": 3, "data.parallel_reads": 40, "data.memory_mb": 1000}
    found = input_pipeline.make_buffers(make_config(**changes), batch_size=8)
    assert (found.threads, found.parallel_reads) == (3, 40)
    assert found.memory_bytes <= 1000 * 2**20
    # Two views of 1024 images of 224 x 224 pixels.
    changes["image_size"] = 224
    with pytest.raises(DataError, match=r"config\.data\.memory_mb=1000: must be at"):
        input_pipeline.make_buffers(make_config(**changes), batch_size=1024)
    input_pipeline.make_buffers(make_config(**changes), batch_size=256)


def test_buffers_hold_the_images_of_one_host(monkeypatch):
    changes = {"data.threads": 1, "data.memory_mb": 1000, "image_size": 224}
    config = make_config(**changes)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    found = input_pipeline.make_buffers(config, batch_size=1024)
    assert found.prefetch == 4
    assert found.memory_bytes < 1000 * 2**20


@pytest.mark.parametrize("device", ["host", "host_crop"])
@pytest.mark.parametrize("block_size", [1, 4])
def test_batches_are_those_of_the_config(device, block_size):
    changes = {"augment.placement": device, "data.block_size": block_size, "seed": 7}
    config = make_config(**changes)
    batches = list(input_pipeline.local_batches(config, arrays(), start_step=2))
    assert len(batches) == 4
    for number, batch in enumerate(batches, start=2):
        settings = {"num_examples": 20, "batch_size": 8, "block_size": block_size}
        indices, epochs = order.batch_indices(number, seed=7, **settings)
        np.testing.assert_array_equal(batch["labels"], indices)
        assert batch["images"].shape == (8, 2, 8, 8, 3)
        assert ("draws" in batch) == (device == "host_crop")
        if device == "host_crop":
            words = indices.astype(np.uint32), epochs.astype(np.uint32)
            key = order.view_keys(*words, seed=7, num_views=2)
            expected = draws.view_draws(key, ("crop", "flip"))
            np.testing.assert_array_equal(batch["draws"], expected)


def test_an_accelerator_is_given_the_dataset_again_and_again():
    config = make_config(**{"augment.placement": "accelerator"})
    mesh = parallel.create_mesh()
    given = input_pipeline.global_batches(config, arrays(), 3, mesh)
    first, second = itertools.islice(given, 2)
    assert first is second
    images, labels = arrays().arrays()
    for name, expected in (("images", images), ("labels", labels)):
        assert first[name].is_fully_replicated
        assert len(first[name].addressable_shards) == 8
        np.testing.assert_array_equal(first[name], expected)


@pytest.mark.parametrize("device", ["host", "host_crop", "accelerator"])
def test_shapes_of_what_the_step_is_given(device):
    config = make_config(**{"augment.placement": device})
    mesh = parallel.create_mesh()
    given = next(input_pipeline.global_batches(config, arrays(), 0, mesh))
    made = device_views.from_config(config, mesh)
    if device == "host":
        assert made is None
        return
    like = made.input_shapes((20, 10, 12))
    assert like.keys() == given.keys()
    for name, array in given.items():
        assert (array.shape, array.dtype) == (like[name].shape, like[name].dtype)
        assert array.sharding.is_equivalent_to(made.input_sharding, array.ndim)
    made = jax.eval_shape(made, given, jax.ShapeDtypeStruct((), np.int32))
    assert made["images"].shape == (8, 2, 8, 8, 3)
    assert made["images"].dtype == np.uint8
    assert made["labels"].shape == (8,)


def folder_with_bad_images(root, count=20, bad=(4, 5)):
    """Images of the level of their number, some cut short after their header."""
    for number in range(count):
        path = root / f"{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10, 12 + number % 3), (number,) * 3).save(path)
        if number in bad:
            path.write_bytes(path.read_bytes()[:45])
    return registry.open_source(f"folder:{root}", split="all")


def batches_of(config, source, workdir=None):
    held = input_pipeline.hold_in_memory(config, source)
    with input_pipeline.open_quarantine(config, held, workdir) as quarantine:
        batches = input_pipeline.local_batches(config, held, 0, quarantine=quarantine)
        return list(batches)


def listed(workdir):
    lines = (workdir / FILE_NAME).read_text().splitlines()[1:]
    return [(int(line.split("\t")[3]), int(line.split("\t")[2])) for line in lines]


@pytest.mark.parametrize("limit_mb", [0, 1024], ids=["read", "in memory"])
def test_bad_images_are_replaced_and_listed(limit_mb, tmp_path):
    (tmp_path / "data").mkdir()
    source = folder_with_bad_images(tmp_path / "data")
    config = make_config(
        **{
            "data.in_memory_mb": limit_mb,
            "schedule.train_steps": 4,
            "augment.crop.area_min": 1.0,
        }
    )
    # Class 0 comes first: files 4 and 5 are its third and class 1's.
    bad = [2, 12]
    held = input_pipeline.hold_in_memory(config, source)
    quarantine = input_pipeline.open_quarantine(config, held, str(tmp_path))
    batches = input_pipeline.local_batches(config, held, 0, quarantine=quarantine)
    numbers = [*range(0, 20, 2), *range(1, 20, 2)]
    needed = {}
    for step, batch in enumerate(batches):
        plan = {"seed": config.seed, "num_examples": 20, "batch_size": 8}
        indices, _ = order.batch_indices(step, **plan)
        for index in bad:
            if index in indices:
                needed.setdefault(index, 0 if limit_mb else step + 1)
        replaced = [index + (index in bad) for index in indices]
        assert (batch["images"][:, 0, 4, 4, 0] == np.take(numbers, replaced)).all()
        assert (batch["labels"] == np.take([0] * 10 + [1] * 10, replaced)).all()
    assert needed.keys() == {*bad}
    assert quarantine.collect() == 2
    assert sorted(listed(tmp_path)) == sorted(needed.items())


@pytest.mark.parametrize("limit_mb", first(1, [1024, 0]), ids=["in memory", "read"])
def test_bad_images_stop_a_run_that_wants_it(limit_mb, tmp_path):
    source = folder_with_bad_images(tmp_path)
    changes = {"data.on_bad_record": "stop", "data.in_memory_mb": limit_mb}
    config = make_config(**changes)
    said = r"0[45]\.png: cannot be .*on_bad_record='replace'"
    with pytest.raises(DataError, match=said):
        batches_of(config, source)


@pytest.mark.parametrize("limit_mb", first(1, [1024, 0]), ids=["in memory", "read"])
def test_too_many_bad_images_stop_a_run(limit_mb, tmp_path):
    (tmp_path / "data").mkdir()
    source = folder_with_bad_images(tmp_path / "data", bad=(4, 5, 6))
    config = make_config(**{"data.in_memory_mb": limit_mb})
    said = r"3 of 20 images cannot be read .*bad_records_max=0\.001 allows 2\."
    with pytest.raises(DataError, match=said):
        batches_of(config, source, str(tmp_path))
    assert len(listed(tmp_path)) == 3


@pytest.mark.parametrize("limit_mb", first(1, [1024, 0]), ids=["in memory", "read"])
def test_files_that_are_no_images_at_a_start(limit_mb, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    folder_with_bad_images(root, bad=())
    config = make_config(
        **{"data.in_memory_mb": limit_mb, "data.dataset": f"folder:{root}"}
    )
    whole = batches_of(config, input_pipeline.open_source(config, "all"))
    (root / "0" / "04.png").write_bytes(b"no image")
    source = input_pipeline.open_source(config, "all", to_train=True)
    found = batches_of(config, source, str(tmp_path))
    for batch, before in zip(found, whole, strict=True):
        good = before["images"][:, 0, 4, 4, 0] != 4
        np.testing.assert_array_equal(
            batch["images"][good, :, 4, 4], before["images"][good, :, 4, 4]
        )
        assert (batch["images"][~good, 0, 4, 4] == 6).all()
    assert listed(tmp_path) == [(2, 0)]
    part = subsets.Subset(source, np.array([1, 2, 3]), name="part")
    assert [(e.index, e.name) for e in part.bad_records] == [(1, source.describe(2))]
    # Whatever else is opened, and with too many of them.
    with pytest.raises(
        DataError, match=r"04\.png: is no readable image \(is no image of a known"
    ):
        input_pipeline.open_source(config, "all")
    for number in (6, 8):
        (root / "0" / f"{number:02}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3 of 20 .*/04\.png: is no readable image"):
        input_pipeline.open_source(config, "all", to_train=True)
    config.data.on_bad_record = "stop"
    with pytest.raises(DataError, match=r"no readable image .*before the first step"):
        input_pipeline.open_source(config, "all", to_train=True)


def test_evaluation_replaces_no_image(tmp_path):
    config = make_config()
    context = types.SimpleNamespace(
        config=config, preprocessing=types.SimpleNamespace(image_size=8)
    )
    of_evaluation = protocols._crops_and_flips(context, num_steps=1)
    with pytest.raises(DataError, match="cannot be decoded"):
        input_pipeline.hold_in_memory(of_evaluation, folder_with_bad_images(tmp_path))
