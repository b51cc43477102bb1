"""The compiled operations of the host against the plain operations.

`test_contract.py` compares them with the reference's values, `test_host.py` compares
whole compositions.
"""

import subprocess
import sys

import numpy as np
import pytest
from host_programs import line, run_program
from simclr_settings import BLUR, JITTER, draws_of

from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, host_kernels, host_op, host_program
from simclr_jax.data.views.composition import Composition

SETTINGS = {
    "flip": {},
    "color_jitter": JITTER,
    "grayscale": {},
    "blur": {**BLUR, "kernel_fraction": 0.4},
}


# Against the plain operations ---------------------------------------------------------


def _program(name, **settings):
    settings = {**SETTINGS[name], **settings}
    return host_program.program(Composition((name,), {name: settings}, 20), [name])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in SETTINGS),
        ("color_jitter", {"brightness_mode": "additive", "strength": 0.5}),
        ("blur", {"kernel_fraction": 0.1}),
        ("blur", {"kernel_fraction": 0.05}),
        ("blur", {"sigma_min": 5.0, "sigma_max": 9.0, "kernel_fraction": 1.0}),
    ],
)
def test_operation_is_the_plain_one(name, changes, overshooting):
    assert set(SETTINGS) == set(host_kernels.OPERATIONS)
    u = draws_of(name, len(overshooting))
    result = run_program(_program(name, probability=0.7, **changes), overshooting, u)
    settings = {**SETTINGS[name], "probability": 0.7, **changes}
    expected = np.stack(
        [
            definition.OPERATIONS[name](
                tf.constant(image), tf.constant(own), **settings
            )
            for image, own in zip(overshooting, u, strict=True)
        ]
    )
    # float32's digits, multiplied along the chain of adjustments; of blur the taps that
    # are left out.
    np.testing.assert_allclose(result, expected, atol=5e-4 if name == "blur" else 2e-5)
    acted = u[:, 0] < np.float32(0.7)
    assert 0.4 < acted.mean() < 0.9
    assert (result[acted][9:] != overshooting[acted][9:]).any(axis=(1, 2, 3)).all()
    # Images on which an operation does not act are left alone, bit for bit.
    np.testing.assert_array_equal(result[~acted], overshooting[~acted])


@pytest.mark.parametrize("name", SETTINGS)
def test_probability_0_and_1_are_certain(name, overshooting):
    # A draw can be 0, but not 1.
    u = draws_of(name, len(overshooting))
    u[:48, 0], u[48:, 0] = 0, 1 - 2**-24
    images = np.clip(overshooting, 0.1, 0.9)
    never = run_program(_program(name, probability=0.0), images, u)
    np.testing.assert_array_equal(never, images)
    always = run_program(_program(name, probability=1.0), images, u)
    # The first images are grey.
    assert (always != images)[9:].any(axis=(1, 2, 3)).all()


# Many at once, and what does not fit --------------------------------------------------

PROGRAM = np.concatenate([line("flip", probability=0.5), line("grayscale")])


def _views(images, boxes, uniform, program=PROGRAM):
    return tf.function(
        lambda: host_op.views(
            tf.constant(images), boxes, None, uniform, program, size=8
        ),
        autograph=False,
    )().numpy()


def test_views_of_many_images_are_those_of_each():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, 12, 20, 3), np.uint8)
    boxes = np.tile(np.int32([[1, 2, 9, 14], [0, 0, 12, 20]]), (3, 1, 1))
    uniform = generator.random((3, 2, 1), np.float32)
    result = _views(images, boxes, uniform)
    assert result.shape == (3, 2, 8, 8, 3)
    for image, own, u, views in zip(images, boxes, uniform, result, strict=True):
        np.testing.assert_array_equal(_views(image, own, u), views)
    assert len(np.unique(result.reshape(6, -1), axis=0)) == 6


def test_no_views_are_none():
    empty = _views(
        np.zeros((0, 12, 20, 3), np.uint8),
        np.zeros((0, 2, 4), np.int32),
        np.zeros((0, 2, 1), np.float32),
    )
    assert empty.shape == (0, 2, 8, 8, 3)


@pytest.mark.parametrize(
    "box",
    [
        (-1, 0, 4, 4),
        (0, -1, 4, 4),
        (0, 0, 0, 4),
        (0, 0, 4, 0),
        (9, 0, 4, 4),
        (0, 17, 4, 4),
        (2**31 - 1, 0, 2**31 - 1, 4),
    ],
)
def test_a_box_that_sticks_out_is_refused(box):
    image = np.zeros((12, 20, 3), np.uint8)
    boxes = np.int32([(0, 0, 12, 20), box])
    with pytest.raises(tf.errors.InvalidArgumentError, match="a box does not lie"):
        _views(image, boxes, np.zeros((2, 1), np.float32))


@pytest.mark.parametrize(
    ("num_images", "num_draws", "program"),
    [
        (2, (3, 1), PROGRAM),  # three views of two images
        (0, (3, 1), PROGRAM),
        (1, (2, 1), PROGRAM),
        (1, (4, 1), PROGRAM),
        (1, (3, 0), PROGRAM),
        (1, (3, 8), line("color_jitter")),
        (1, (3, 1), np.repeat(PROGRAM, 3, axis=0)),
        (1, (3, 9), line("flip") * 0 + 7),  # no such operation
        (1, (3, 9), line("flip") - np.eye(1, 12, 1, dtype=np.float32)),
        (1, (3, 9), line("blur", number=-1)),
    ],
)
def test_what_does_not_belong_together_is_refused(num_images, num_draws, program):
    images = np.zeros((num_images, 12, 20, 3), np.uint8)
    boxes = np.tile(np.int32([0, 0, 12, 20]), (3, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="do not match"):
        _views(images, boxes, np.zeros(num_draws, np.float32), program)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image", [20, 20, 4]),
        ("image", [None, None, None]),
        ("image", [20, 3]),
        ("boxes", [None, None]),
        ("boxes", [1, 8]),
        ("draws", []),
        ("draws", None),
    ],
)
def test_shapes_that_are_not_known_to_fit_are_refused(name, shape):
    specs = {
        "image": tf.TensorSpec([20, 20, 3], tf.uint8),
        "boxes": tf.TensorSpec([1, 4], tf.int32),
        "draws": tf.TensorSpec([1, 1], tf.float32),
    }
    specs[name] = tf.TensorSpec(shape, specs[name].dtype)
    function = tf.function(
        lambda image, boxes, draws: host_op.views(
            image, boxes, None, draws, PROGRAM, size=8
        ),
        input_signature=list(specs.values()),
        autograph=False,
    )
    with pytest.raises(ValueError, match=f"{name} has shape"):
        function.get_concrete_function()


def _printed(script):
    """What a process of its own prints that runs the lines of Python to their end."""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_too_little_memory_is_an_error():
    # In a process of its own, which may have 1 GB more than it has then.
    script = (
        "import resource\n"
        "import numpy as np\n"
        "from simclr_jax.data.views import host_kernels, host_op\n"
        "from simclr_jax.data.tf_cpu import tf\n"
        "none = np.zeros((0, host_kernels.PROGRAM_WIDTH), np.float32)\n"
        "@tf.function(autograph=False)\n"
        "def views(image, boxes):\n"
        "    draws = tf.zeros((boxes.shape[0], 0))\n"
        "    return host_op.views(image, boxes, None, draws, none, size=1000)\n"
        "image = np.zeros((8, 8, 3), np.uint8)\n"
        "boxes = np.tile(np.int32([0, 0, 8, 8]), (2000, 1))\n"
        "views(tf.constant(image), tf.constant(boxes[:1]))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "try:\n"
        "    views(tf.constant(image), tf.constant(boxes))\n"
        "except tf.errors.ResourceExhaustedError:\n"
        "    print('refused')\n"
    )
    assert _printed(script) == "refused\n"


@pytest.mark.slow
def test_several_threads_may_be_the_first():
    script = (
        "import threading\n"
        "import numpy as np\n"
        "from simclr_jax.data.views import host_kernels, host_op\n"
        "from simclr_jax.data.tf_cpu import tf\n"
        "none = np.zeros((0, host_kernels.PROGRAM_WIDTH), np.float32)\n"
        "def build():\n"
        "    with tf.Graph().as_default():\n"
        "        image = tf.zeros((8, 8, 3), tf.uint8)\n"
        "        boxes = tf.zeros((1, 4), tf.int32)\n"
        "        host_op.views(image, boxes, None, tf.zeros((1, 0)), none, size=8)\n"
        "    print('built')\n"
        "threads = [threading.Thread(target=build) for _ in range(3)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
    )
    assert _printed(script).count("built") == 3


@pytest.mark.slow
def test_kernels_run_where_nothing_can_be_written():
    # As for a user without a home, and a package that belongs to another.
    script = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from simclr_jax.data.views import host_kernels\n"
        "assert host_kernels.memory_size(32, 40) > 6 * 32 * 32\n"
    )
    _printed(script)


@pytest.mark.parametrize("sigma", [np.inf, np.nan, 1e30, -1e30, 0.0])
def test_no_sigma_leads_outside_of_the_memory(sigma):
    weight = np.full(12, -7.0, np.float32)
    # Beyond the eight that the kernel is given.
    blur = host_kernels._gaussian(np.float32(sigma), np.float32(100), weight[2:10])
    assert 0 <= blur.radius <= 7
    np.testing.assert_array_equal(weight[[0, 1, 10, 11]], -7)
