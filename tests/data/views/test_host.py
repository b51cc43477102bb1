"""The fast forms of a composition, on the host and in JAX, against the plain one.

The same draws give the same view. What may differ is rounding: float32 sums in another
order, and taps of the blur that weigh next to nothing are left out. So a pixel here and
there lies on the other side of a border between two of the 256 levels.
"""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import skimage
from cases import first
from PIL import Image
from simclr_settings import BLUR, CROP, JITTER, view_in_graph

from simclr_jax.data.sampling import boxes, draws, order
from simclr_jax.data.sources import photographs
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, device, host, host_form
from simclr_jax.data.views.composition import Composition

SIMCLR = ("crop", "flip", "color_jitter", "grayscale", "blur")
SETTINGS = {
    "crop": CROP,
    "flip": {"probability": 0.5},
    "color_jitter": {"probability": 0.8, **JITTER},
    "grayscale": {"probability": 0.2},
    "blur": {"probability": 0.5, **BLUR, "kernel_fraction": 0.1},
    "rotation": {"probability": 0.5},
    "cutout": {"probability": 0.5, "size_fraction": 0.5},
    "sobel": {"probability": 0.3},
}
ADDITIVE = {
    **SETTINGS,
    "color_jitter": {**SETTINGS["color_jitter"], "brightness_mode": "additive"},
}
# Share of the pixels' values that may differ, by one level.
SHARE = 1e-3


def _keys(num_images, num_views=1):
    indices = np.arange(num_images, dtype=np.uint32)
    epochs = np.zeros(num_images, np.uint32)
    return order.view_keys(indices, epochs, seed=0, num_views=num_views)


def _assert_same_views(result, expected, share=SHARE):
    assert result.dtype == np.uint8
    assert result.shape == expected.shape
    difference = np.abs(result.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= share


def _plain(composition):
    """The plain view, as a graph for images of any size."""
    view = definition.compose(
        composition.operations,
        composition.settings,
        image_size=composition.image_size,
    )
    return view_in_graph(view)


def _fast(composition, compiled=True):
    """The host's form: views of images of any size."""
    return tf.function(
        host.compose(composition, compiled=compiled),
        input_signature=[
            tf.TensorSpec([None, None, 3], tf.uint8),
            tf.TensorSpec([None, 4], tf.int32),
            tf.TensorSpec([None, None], tf.float32),
        ],
        autograph=False,
    )


# 10,000 views of small images ---------------------------------------------------------

SMALL = Composition(SIMCLR, SETTINGS, 32)
CHUNK = 250


@pytest.fixture(scope="module")
def small():
    """Photographs [5000, 32, 32, 3], boxes and draws of two views, the plain views."""
    images, _ = photographs.load("train")
    images = images[np.random.default_rng(0).permutation(len(images))[:5000]]
    key = _keys(5000, num_views=2)
    found = boxes.random_boxes(key, SMALL.box_draws((32, 32)))
    uniform = draws.view_draws(key, SIMCLR)
    view = _plain(SMALL)

    @tf.function(autograph=False)
    def run(images, found, uniform):
        return tf.map_fn(
            lambda one: view(*one),
            (tf.repeat(images, 2, axis=0), found, uniform),
            fn_output_signature=tf.uint8,
        )

    views = run(images, found.reshape(-1, 4), uniform.reshape(10_000, -1))
    return images, found, uniform, views.numpy().reshape(5000, 2, 32, 32, 3)


def _in_chunks(function, *arrays):
    parts = [
        np.asarray(function(*(array[start : start + CHUNK] for array in arrays)))
        for start in range(0, len(arrays[0]), CHUNK)
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("compiled", first(1, [True, False]), ids=["compiled", "graph"])
def test_chunks_on_the_host_are_the_plain_views(compiled, small):
    images, found, uniform, expected = small
    views = tf.function(host.compose(SMALL, compiled=compiled), autograph=False)
    result = _in_chunks(views, images, found, uniform)
    # When this was written: 4e-6 of the values.
    _assert_same_views(result, expected, share=3e-5)
    assert len(np.unique(expected.reshape(10_000, -1), axis=0)) > 9_900


@pytest.mark.parametrize("count", [1000, pytest.param(5000, marks=pytest.mark.slow)])
def test_batches_in_jax_are_the_plain_views(small, count):
    images, found, uniform, expected = (array[:count] for array in small)
    views = jax.jit(device.compose(SMALL))
    result = _in_chunks(
        lambda images, found, uniform: views(
            np.repeat(images, 2, axis=0),
            uniform.reshape(2 * CHUNK, -1),
            found.reshape(2 * CHUNK, 4),
        ),
        images,
        found,
        uniform,
    )
    _assert_same_views(result.reshape(expected.shape), expected)


@pytest.mark.parametrize("compiled", first(1, [True, False]), ids=["compiled", "graph"])
def test_single_images_on_the_host_are_the_plain_views(compiled, small):
    images, found, uniform, expected = small
    views = _fast(SMALL, compiled=compiled)
    for number in range(500):
        result = views(images[number], found[number], uniform[number]).numpy()
        _assert_same_views(result, expected[number], share=1.0)


# Other sizes and compositions ---------------------------------------------------------


@pytest.fixture(scope="module")
def mixed():
    """Pieces of photographs, of sizes from 40 to 400 pixels."""
    generator = np.random.default_rng(0)
    whole = []
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "retina.jpg"):
        with Image.open(pathlib.Path(skimage.data_dir) / name) as file:
            whole.append(np.asarray(file.convert("RGB")))
    pieces = []
    for number in range(120):
        image = whole[number % len(whole)]
        height, width = np.minimum(generator.integers(40, 401, 2), image.shape[:2])
        y = generator.integers(image.shape[0] - height + 1)
        x = generator.integers(image.shape[1] - width + 1)
        pieces.append(image[y : y + height, x : x + width])
    return pieces


def _with_patterns(images, operations):
    """Besides, patterns of the purest colours, where bicubic resizing overshoots.

    Not for the jitter: where a hue is less than float32's last digit below red,
    TensorFlow's adjust_saturation, which the plain view takes, turns a pixel dark.
    """
    if "color_jitter" in operations:
        return images
    shapes = [image.shape for image in images[:30]]
    generator = np.random.default_rng(1)
    levels = np.array([0, 255], np.uint8)
    return [*images, *(generator.choice(levels, shape) for shape in shapes)]


def _inputs(composition, images):
    """(image, box [4], u [D]) for each image."""
    key = _keys(len(images))
    uniform = draws.view_draws(key, composition.operations)[:, 0]
    for number, image in enumerate(images):
        own = order.Key(*(word[number] for word in key))
        box_draws = composition.box_draws(image.shape[:2])
        box = (
            np.array([0, 0, *image.shape[:2]], np.int32)
            if box_draws is None
            else boxes.random_boxes(own, box_draws)[0]
        )
        yield image, box, uniform[number]


def _assert_same_one_by_one(composition, images, share=SHARE):
    fast, plain = _fast(composition), _plain(composition)
    inputs = list(_inputs(composition, images))
    result = [fast(image, box[None], u[None])[0] for image, box, u in inputs]
    expected = [plain(*one) for one in inputs]
    _assert_same_views(np.stack(result), np.stack(expected), share)


@pytest.mark.parametrize("image_size", first(1, [80, 224]))
def test_views_of_images_of_mixed_sizes_are_the_plain_ones(image_size, mixed):
    _assert_same_one_by_one(Composition(SIMCLR, SETTINGS, image_size), mixed)


# Kernels that go farther than any sigma needs, and views of which many are grey too.
WIDE_BLUR = {
    **SETTINGS,
    "grayscale": {"probability": 0.5},
    "blur": {
        "probability": 0.9,
        "sigma_min": 0.1,
        "sigma_max": 2.0,
        "kernel_fraction": 0.3,
    },
}
BLUR_FIRST = ("crop", "blur", "color_jitter", "flip", "grayscale")
OTHERS = ("crop", "rotation", "flip", "grayscale", "cutout", "blur", "sobel")
ALL = ("crop", "rotation", "color_jitter", "cutout", "flip", "sobel", "blur")


@pytest.mark.parametrize(
    ("operations", "settings", "image_size"),
    [
        *first(
            2,
            [
                (SIMCLR, ADDITIVE, 24),
                (ALL, SETTINGS, 72),
                (OTHERS, SETTINGS, 24),
                (("flip", "blur", "grayscale"), WIDE_BLUR, 24),
                ((), SETTINGS, 24),
                (("color_jitter",), ADDITIVE, 72),
                (SIMCLR, ADDITIVE, 72),
                (BLUR_FIRST, SETTINGS, 24),
                (BLUR_FIRST, SETTINGS, 72),
                (ALL, SETTINGS, 24),
                (OTHERS, SETTINGS, 72),
                (("crop", "sobel"), SETTINGS, 24),
                (("crop", "grayscale", "blur"), WIDE_BLUR, 24),
                (("crop", "grayscale", "blur"), WIDE_BLUR, 72),
                (("grayscale", "flip"), SETTINGS, 72),
                (("crop", "flip"), SETTINGS, 24),
                (("crop",), SETTINGS, 24),
            ],
        )
    ],
)
def test_any_composition_is_the_plain_one(operations, settings, image_size, mixed):
    images = _with_patterns(mixed, operations)
    _assert_same_one_by_one(Composition(operations, settings, image_size), images)


@pytest.mark.parametrize(
    ("operations", "settings"),
    first(
        1,
        [
            (BLUR_FIRST, ADDITIVE),
            (OTHERS, SETTINGS),
            (ALL, SETTINGS),
            (("flip", "blur"), SETTINGS),
            (("crop", "grayscale", "blur"), WIDE_BLUR),
            (("crop",), SETTINGS),
        ],
    ),
)
def test_any_composition_of_a_chunk_is_the_plain_one(operations, settings, mixed):
    composition = Composition(operations, settings, 24)
    images = [image[:40, :40] for image in _with_patterns(mixed, operations)]
    inputs = list(_inputs(composition, images))
    plain = _plain(composition)
    expected = np.stack([plain(*one).numpy() for one in inputs])
    images, found, uniform = (np.stack(parts) for parts in zip(*inputs, strict=True))
    views = tf.function(host.compose(composition), autograph=False)
    result = views(images, found[:, None], uniform[:, None]).numpy()
    _assert_same_views(result[:, 0], expected)


def test_equal_compositions_share_what_is_compiled():
    same = Composition(SIMCLR, {**SETTINGS, "noise": {"probability": 0.1}}, 32)
    assert same == SMALL
    assert host.compose(same) is host.compose(SMALL)
    for other in (
        Composition(SIMCLR[1:], SETTINGS, 32),
        Composition(SIMCLR, ADDITIVE, 32),
        Composition(SIMCLR, SETTINGS, 24),
    ):
        assert other != SMALL
        assert host.compose(other) is not host.compose(SMALL)


# Without Numba ------------------------------------------------------------------------


def _in_a_process(script):
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_the_graph_form_imports_no_numba():
    script = (
        "import sys\n"
        "from simclr_jax.data import pipeline\n"
        "from simclr_jax.data.views import host\n"
        "from simclr_jax.data.views.composition import Composition\n"
        "view = Composition(('flip',), {'flip': {'probability': 0.5}}, 8)\n"
        "host.compose(view, compiled=False)\n"
        "print('numba' in sys.modules)\n"
    )
    assert _in_a_process(script) == "False\n"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        pytest.param("sys.modules['numba'] = None", "import of numba halted"),
        pytest.param(
            "import numba\n"
            "ctypes.CDLL = lambda name: (_ for _ in ()).throw(OSError('no such file'))",
            "OSError: no such file",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "import numba\n"
            "ctypes.CDLL.__getitem__ = lambda self, name: "
            "(_ for _ in ()).throw(AttributeError('undefined symbol'))",
            "AttributeError: undefined symbol",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["numba", "library", "symbol"],
)
def test_the_reason_why_views_cannot_be_compiled(broken, reason):
    script = (
        "import ctypes, sys\n"
        "from simclr_jax.data.views import host_form\n"
        f"{broken}\n"
        "print(host_form.unavailable())\n"
    )
    assert reason in _in_a_process(script)
    assert host_form.unavailable() is None
