"""The antialiased bicubic of every path against Pillow's, within one of 256 levels."""

import jax
import numpy as np
import pytest
from PIL import Image
from simclr_settings import draws_of

from simclr_jax.configs import base, folder
from simclr_jax.data import augment_jax
from simclr_jax.data.preprocessing import Preprocessing, resize_antialiased
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import (
    definition,
    host,
    host_kernels,
    host_op,
    host_program,
)
from simclr_jax.data.views.composition import Composition
from simclr_jax.runs import format_version
from simclr_jax.training.device_views import make_composition

SIZE = 24
CUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


def _noise(height, width):
    generator = np.random.default_rng(height)
    return generator.integers(0, 256, (height, width, 3), np.uint8)


def _text(height, width):
    """Black strokes on white, whose cubic overshoots on both sides."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[:, ::7], image[::11] = 0, (0, 60, 0)
    return image


def _circles(height, width):
    """Rings that narrow outwards, finer than any small picture can show."""
    y, x = np.mgrid[:height, :width] / 4
    rings = np.cos(x * x / 9 + y * y / 9)[..., None] * [1.0, 0.5, -1.0]
    return np.rint(127.5 + 127.5 * rings).astype(np.uint8)


# Many times as large; oblong; hardly larger; smaller than the result, down to a pixel.
PICTURES = [
    _noise(150, 210),
    _text(230, 61),
    _circles(90, 300),
    _circles(25, 23),
    _noise(7, 16),
    _text(1, 40),
]


def _boxes(image):
    height, width = image.shape[:2]
    part = (height // 3, width // 4, max(height // 2, 1), max(2 * width // 3, 1))
    return np.int32([(0, 0, height, width), part])


def _pillow(image, box=None, size=SIZE):
    y, x, height, width = (0, 0, *image.shape[:2]) if box is None else box
    part = Image.fromarray(np.ascontiguousarray(image[y : y + height, x : x + width]))
    # In two steps: since version 13 Pillow takes another order where a part is tall.
    return np.asarray(part.resize((size, height), CUBIC).resize((size, size), CUBIC))


def _compiled(image, boxes):
    operation = tf.function(
        lambda: host_op.views(
            tf.constant(image),
            tf.constant(boxes),
            None,
            tf.zeros((len(boxes), 0)),
            np.zeros((0, host_kernels.PROGRAM_WIDTH), np.float32),
            size=SIZE,
            antialias=True,
        ),
        autograph=False,
    )
    return operation().numpy()


def _graph(image, boxes):
    parts = [
        definition.crop_and_resize(image, box.tolist(), (SIZE, SIZE), antialias=True)
        for box in boxes
    ]
    return np.stack([definition.to_uint8(part) for part in parts])


def _device(image, boxes):
    # Images of one size, so that one program serves for all.
    placed = np.zeros((230, 300, 3), np.float32)
    placed[: image.shape[0], : image.shape[1]] = image / np.float32(255)
    both = np.repeat(placed[None], len(boxes), axis=0)
    return np.rint(np.clip(_on_device(both, boxes), 0, 1) * 255)


@jax.jit
def _on_device(images, boxes):
    return augment_jax.crop_and_resize(images, boxes, (SIZE, SIZE), antialias=True)


def _numpy(image, boxes):
    parts = [
        image[y : y + height, x : x + width] / np.float32(255)
        for y, x, height, width in boxes
    ]
    return np.stack([np.rint(resize_antialiased(p, SIZE) * 255) for p in parts])


@pytest.mark.parametrize("path", [_compiled, _graph, _device, _numpy])
def test_crops_are_those_of_pillow(path):
    for image in PICTURES:
        boxes = _boxes(image)
        expected = np.stack([_pillow(image, box) for box in boxes]).astype(int)
        difference = np.abs(path(image, boxes).astype(int) - expected)
        assert difference.max() <= 1, image.shape
        assert difference.mean() < 0.3  # of rows that Pillow rounds


def test_pillow_in_one_step_is_the_same():
    for image in (PICTURES[0], PICTURES[2], PICTURES[4]):  # none of which is tall
        whole = Image.fromarray(image).resize((SIZE, SIZE), CUBIC)
        assert np.abs(np.asarray(whole).astype(int) - _pillow(image)).max() == 0


def test_flips_and_rows_of_any_length():
    """The first operation mirrors the taps, and views are computed strip by strip."""
    image = PICTURES[2]
    for size in (5, 61, 96):
        composition = Composition(
            ("crop", "flip"), {"flip": {"probability": 0.5}}, size, antialias=True
        )
        result = np.zeros((1, 2, size, size, 3), np.uint8)
        box = np.tile(np.int32([3, 20, 80, 260]), (1, 2, 1))
        draws = np.float32([[[0.9], [0.1]]])
        host_program.compose(composition)(image[None], box, draws, result)
        expected = _pillow(image, box[0, 0], size).astype(int)
        assert np.abs(result[0, 0] - expected).max() <= 1
        assert np.abs(result[0, 1] - expected[:, ::-1]).max() <= 1


def test_nothing_is_written_beyond_the_memory():
    generator = np.random.default_rng(0)
    for height, width, size in ((90, 3, 8), (3, 90, 8), (40, 40, 64), (1, 1, 9)):
        image = generator.integers(0, 256, (1, height, 3 * width), np.uint8)
        numbers = host_kernels.memory_size(size, max(height, width))
        memory = np.full(numbers + 64, -7, np.float32)
        memory[:numbers] = np.nan  # what an allocator may leave
        result = np.zeros((1, size * size * 3), np.uint8)
        problem = host_kernels.make_views(
            image,
            np.int32([[0, 0, height, width]]),
            np.zeros((0, size * size * 3), np.float32),
            np.zeros((1, 0), np.float32),
            np.zeros((0, host_kernels.PROGRAM_WIDTH), np.float32),
            size,
            True,
            result,
            np.zeros((1, 0), np.float32),
            memory[:numbers],
        )
        assert problem < 0
        assert (memory[numbers:] == -7).all()
        expected = _pillow(image.reshape(height, width, 3), size=size)
        got = result.reshape(expected.shape).astype(int)
        assert np.abs(got - expected).max() <= 1


def test_other_operations_follow_an_antialiased_crop():
    """As the graph has them, and a sobel between takes the views that are there."""
    names = ("crop", "sobel", "flip")
    settings = {"crop": {}, "sobel": {"probability": 1.0}, "flip": {"probability": 1.0}}
    composition = Composition(names, settings, SIZE, antialias=True)
    image, boxes = PICTURES[2], _boxes(PICTURES[2])
    uniform = np.concatenate([draws_of("sobel", 2), draws_of("flip", 2)], axis=1)
    compiled, graph = (
        tf.function(host.compose(composition, compiled=form), autograph=False)(
            tf.constant(image), tf.constant(boxes), tf.constant(uniform)
        ).numpy()
        for form in (True, False)
    )
    assert np.abs(compiled.astype(int) - graph).max() <= 1


# Evaluation, and what a config says ---------------------------------------------------


def _photograph(number, height=1200, width=1600):
    """Blobs with the grain of a camera, as large photographs have it."""
    generator = np.random.default_rng(number)
    blobs = Image.fromarray(generator.integers(0, 256, (60, 80, 3), np.uint8))
    enlarged = np.asarray(blobs.resize((width, height), CUBIC)).astype(np.int16)
    grain = generator.integers(-25, 25, enlarged.shape, np.int16)
    return np.clip(enlarged + grain, 0, 255).astype(np.uint8)


@jax.jit
def _features(images):
    """A tiny encoder: edges, a convolution of random weights, and the average."""
    x = images
    for number, filters in enumerate((3, 16)):
        kernel = jax.random.normal(jax.random.key(number), (3, 3, filters, 16))
        kernel -= kernel.mean(axis=(0, 1)) * (number == 0)
        x = jax.lax.conv_general_dilated(
            x, kernel / 5, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean(axis=(1, 2))[0]


def _cosine(preprocessing, first, second):
    a, b = (np.asarray(_features(preprocessing(x))) for x in (first, second))
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_a_photograph_and_its_shrunk_copy_look_the_same_to_an_encoder():
    photographs = [_photograph(0), _photograph(1, 900, 2000), _circles(1000, 800)]
    four_taps = Preprocessing(64, 0.875, "bicubic")
    antialiased = Preprocessing(64, 0.875, "bicubic_antialias")
    for photograph in photographs:
        factor = 96 / min(photograph.shape[:2])
        size = [round(side * factor) for side in photograph.shape[1::-1]]
        shrunk = np.asarray(Image.fromarray(photograph).resize(size, LANCZOS))
        assert _cosine(antialiased, photograph, shrunk) > 0.995
    # Four taps see what the shrunk copy of the rings does not show.
    assert _cosine(four_taps, photograph, shrunk) < 0.95


@pytest.mark.parametrize("size", [(97, 140), (300, 301), (20, 31)])
def test_evaluation_images_are_those_of_pillow(size):
    image = _text(*size)
    short = min(size)
    side = round(short * 0.875)
    y, x = ((length - side + 1) // 2 for length in size)
    expected = _pillow(image, (y, x, side, side), 32).astype(int)
    prepared = {
        "numpy": Preprocessing(32, 0.875, "bicubic_antialias")(image)[0],
        "graph": definition.center_crop_and_resize(
            image, image_size=32, crop_proportion=0.875, resize="bicubic_antialias"
        ),
    }
    for result in prepared.values():
        levels = np.rint(np.asarray(result) * 255)
        assert np.abs(levels - expected).max() <= 1


def test_own_images_are_antialiased_and_the_presets_are_not():
    own, reference = folder.get_config("images"), base.get_config()
    assert make_composition(own).antialias
    assert own.evaluation.resize == "bicubic_antialias"
    assert not make_composition(reference).antialias
    assert reference.evaluation.resize == "bicubic"
    # Also whole images, of a composition without crops.
    own.augment.operations = ("flip",)
    assert make_composition(own).antialias


def test_an_older_run_keeps_its_four_taps():
    stored = format_version.upgrade({"augment": {"crop": {}}}, file="config.json")
    assert stored["augment"]["crop"]["antialias"] is False
