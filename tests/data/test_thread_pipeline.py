"""Batches by threads: those of tf.data, bit for bit, in order, whatever fails."""

import threading
import time

import numpy as np
import pytest
from cases import first
from PIL import Image
from simclr_settings import CROP, JITTER

from simclr_jax.data import optional, pipeline, tf_pipeline, thread_pipeline
from simclr_jax.data.buffers import Buffers
from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.data.sources import arrays, folder, in_memory
from simclr_jax.data.step_sampler import StepSampler, slice_of_host
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import DataError

SETTINGS = {
    "crop": CROP,
    "flip": {"probability": 0.5},
    "color_jitter": {**JITTER, "probability": 0.8},
    "grayscale": {"probability": 0.2},
    "blur": {
        "probability": 0.5,
        "sigma_min": 0.1,
        "sigma_max": 2.0,
        "kernel_fraction": 0.3,
    },
}
WHOLE = Composition(tuple(SETTINGS), SETTINGS, image_size=9)
COUNT = 41


def _uniform():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, 12, 10, 3), np.uint8)
    return arrays.ArraySource(images, np.arange(COUNT), name="arrays")


def _grey():
    images = np.random.default_rng(1).integers(0, 256, (COUNT, 12, 10, 1), np.uint8)
    return arrays.ArraySource(images, name="grey")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of images of many sizes, in two classes."""
    root = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(2)
    for number in range(COUNT):
        size = generator.integers(9, 40, 2)
        pixels = generator.integers(0, 256, (*size // 3 + 1, 3), np.uint8)
        image = Image.fromarray(pixels).resize(size.tolist())
        (root / f"{number % 2}").mkdir(exist_ok=True)
        suffix = ("png", "jpg")[number % 3 == 0]
        image.save(root / f"{number % 2}" / f"{number:02}.{suffix}")
    return root


def _held(files):
    return in_memory.hold(folder.FolderSource(str(files)), limit_mb=1)


def _sampler(source, *, batch_size=12, block_size=1, host=(0, 1), num_views=2):
    host_slice = slice_of_host(batch_size, *host)
    return StepSampler(source, WHOLE, 3, batch_size, block_size, num_views, host_slice)


def _buffers(threads=3, prefetch=2):
    return Buffers(threads, threads, prefetch, 0)


def _both(sampler, *, start_step=0, stop_step=5, host_crop=False):
    settings = {
        "start_step": start_step,
        "stop_step": stop_step,
        "host_crop": host_crop,
        "buffers": _buffers(),
    }
    return (
        list(thread_pipeline.train_batches(sampler, **settings)),
        list(tf_pipeline.train_batches(sampler, **settings, compiled=True)),
    )


def _assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("host_crop", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "grey", "files"])
def test_batches_are_those_of_tf_data(kind, host_crop, files):
    source = {"uniform": _uniform, "grey": _grey, "files": lambda: _held(files)}[kind]()
    _assert_equal(*_both(_sampler(source), host_crop=host_crop))


@pytest.mark.parametrize(
    "changes",
    first(
        1, [{"block_size": 4}, {"host": (1, 3)}, {"num_views": 1}, {"batch_size": 40}]
    ),
)
def test_batches_of_other_settings(changes, files):
    _assert_equal(*_both(_sampler(_held(files), **changes), start_step=3))


@pytest.mark.slow
def test_more_images_than_one_task_has(monkeypatch, files):
    sampler = _sampler(_held(files))
    expected, _ = _both(sampler)
    monkeypatch.setattr(thread_pipeline, "_CHUNK", 5)
    found, _ = _both(sampler)
    _assert_equal(found, expected)


def test_images_in_memory_are_taken_by_threads(monkeypatch, files):
    def chosen(source, composition=WHOLE, **settings):
        taken = []
        for module in (thread_pipeline, tf_pipeline):
            monkeypatch.setattr(
                module, "train_batches", lambda *_, m=module, **__: taken.append(m)
            )
        pipeline.train_batches(
            source, composition, seed=0, batch_size=2, stop_step=1, **settings
        )
        return taken

    rotated = Composition(("crop", "rotation"), SETTINGS, image_size=9)
    in_files = folder.FolderSource(str(files))
    assert chosen(_uniform()) == chosen(_held(files)) == [thread_pipeline]
    assert chosen(_uniform(), rotated, host_crop=True) == [thread_pipeline]
    assert chosen(in_files) == [tf_pipeline]
    assert chosen(_uniform(), compiled=False) == [tf_pipeline]
    assert chosen(_uniform(), rotated) == [tf_pipeline]
    monkeypatch.setattr(optional, "is_installed", lambda package: False)
    assert chosen(in_files) == [thread_pipeline]
    with pytest.raises(DataError, match="arrays needs TensorFlow"):
        chosen(_uniform(), rotated)


def test_batches_wait_for_the_consumer():
    sampled = []

    class Watched(arrays.ArraySource):
        def read(self, indices):
            sampled.append(len(indices))
            return super().read(indices)

    images = np.zeros((COUNT, 4, 4, 3), np.uint8)
    source = Watched(images, np.arange(COUNT), name="watched")
    batches = thread_pipeline.train_batches(
        _sampler(source),
        start_step=0,
        stop_step=10**6,
        host_crop=False,
        buffers=_buffers(prefetch=2),
    )
    next(batches)
    time.sleep(0.2)
    assert sum(sampled) == 12 * 3, "the batch and two ahead"
    names = [thread.name for thread in threading.enumerate()]
    assert any("ThreadPoolExecutor" in name for name in names)
    batches.close()
    alive = [thread for thread in threading.enumerate() if thread.name not in names]
    assert not alive


def test_an_image_that_cannot_be_decoded_is_named(files, tmp_path):
    broken = tmp_path / "0" / "broken.jpg"
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        for file in (files / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    content = (files / "0" / "00.jpg").read_bytes()
    broken.write_bytes(content[:-60])
    source = folder.FolderSource(str(tmp_path))
    said = rf"file {broken}: cannot be decoded \(the file is cut short"
    with pytest.raises(DataError, match=said):
        in_memory.hold(source, limit_mb=1)
    preprocessing = Preprocessing(image_size=8, crop_proportion=1.0)
    everything = np.arange(source.num_examples)[None]
    with pytest.raises(DataError, match=said):
        list(thread_pipeline.eval_batches(source, preprocessing, everything, threads=2))


@pytest.mark.parametrize("proportion", [0.875, 1.0])
@pytest.mark.parametrize("resize", ["bicubic", "bicubic_legacy"])
def test_evaluation_images_are_those_of_tf_data(proportion, resize, files):
    source = folder.FolderSource(str(files))
    preprocessing = Preprocessing(11, proportion, resize)
    indices = np.array([[5, 40, 3], [1, 1, 1]])
    found, expected = (
        list(module.eval_batches(source, preprocessing, indices, threads=2))
        for module in (thread_pipeline, tf_pipeline)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one["labels"], other["labels"])
        np.testing.assert_allclose(one["images"], other["images"], atol=3e-6)
