"""The compiled operations of the host: the reference's values, and the plain ones'.

Whole compositions are compared in `test_host.py`.
"""

import subprocess
import sys

import numpy as np
import pytest
from simclr_settings import BLUR, JITTER, colour_cases, draws_of

from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import compiled, definition, host_kernels, host_op
from simclr_jax.data.views.composition import Composition

FORM = ", compiled"  # on the fidelity page
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
COLOURS = {
    "brightness_v1_additive": "brightness",
    "brightness_v2_multiplicative": "brightness",
    "contrast": "contrast",
    "saturation": "saturation",
    "hue": "hue",
}
SETTINGS = {
    "flip": {},
    "color_jitter": JITTER,
    "grayscale": {},
    "blur": {**BLUR, "kernel_fraction": 0.4},
}


def _line(name, ranges=(), number=0.0, probability=1.0):
    """A program of one operation."""
    filled = np.zeros((4, 2))
    filled[: len(ranges)] = np.reshape(ranges, (-1, 2))
    kind = host_kernels.OPERATIONS.index(name)
    return np.float32([[kind, 0, probability, *filled.reshape(-1), number]])


def _run(program, made, u):
    """The program on views float32 [N, S, S, 3] with draws [N, D]."""
    made = np.asarray(made, np.float32)
    no_boxes = np.zeros((len(made), 4), np.int32)
    operation = tf.function(
        lambda made, u: host_op.views(
            None, no_boxes, made, u, program, size=made.shape[1], as_floats=True
        ),
        autograph=False,
    )
    return operation(made, np.asarray(u, np.float32)).numpy()


def _colours(program, images, u):
    """The same of images [N, H, W, 3], laid side by side so that each is a square."""
    height, width = images.shape[1:3]
    side = np.lcm(height, width)
    squares = np.tile(images, (1, side // height, side // width, 1))
    return _run(program, squares, u)[:, :height, :width]


# Against the reference ----------------------------------------------------------------


@pytest.mark.parametrize("group", ["A", "B", "C"])
@pytest.mark.parametrize("name", COLOURS)
def test_color_operation_agrees_with_the_reference(group, name, colors, assert_close):
    cases, tolerance = colour_cases(colors, group, name)
    images = colors[f"{group}/input"]
    # The one comes first; the others leave all alone.
    places = [float(COLOURS[name] != other) for other in NEUTRAL]
    additive = float(name == "brightness_v1_additive")
    results = []
    for factor, _ in cases:
        factors = NEUTRAL | {COLOURS[name]: factor}
        if additive and factors["brightness"] == 1.0:
            factors["brightness"] = 0.0
        ranges = [(factor, 0.0) for factor in factors.values()]
        program = _line("color_jitter", ranges, additive)
        u = np.tile([0.0, 0.0, 0.0, 0.0, 0.0, *places], (len(images), 1))
        results.append(_colours(program, images, u))
    expected = np.clip(np.concatenate([result for _, result in cases]), 0, 1)
    result = np.concatenate(results)[:, ::2, ::2]
    assert_close(f"Colour: {name}", result, expected, tolerance)


@pytest.mark.parametrize("group", ["A", "B", "C"])
def test_color_jitter_agrees_with_the_reference(group, colors, assert_close):
    factors = colors["chain_factors_b_c_s_h"]
    program = _line("color_jitter", [(factor, 0.0) for factor in factors])
    images = colors[f"{group}/input"]
    for letters in ("bcsh", "hscb"):
        places = [letters.index(letter) / 4 for letter in "bcsh"]
        u = np.tile([0.0, 0.0, 0.0, 0.0, 0.0, *places], (len(images), 1))
        result = _colours(program, images, u)[:, ::2, ::2]
        expected = colors[f"{group}/chain_{letters}_clip_each"]
        assert_close("Colour jitter, two orders", result, expected, 5e-6)


@pytest.mark.parametrize("group", ["A", "B", "C"])
def test_grayscale_agrees_with_the_reference(group, colors, assert_close):
    images = colors[f"{group}/input"]
    result = _colours(_line("grayscale"), images, np.zeros((len(images), 1)))
    expected = colors[f"{group}/grayscale"]
    assert_close("Colour: grayscale", result[:, ::2, ::2], expected, 2e-6)


@pytest.mark.parametrize(("group", "size"), [("A", 3), ("B", 6), ("B", 22)])
def test_blur_agrees_with_the_reference(group, size, colors, assert_close):
    keys = [key for key in colors if key.startswith(f"{group}/blur/ks{size}/")]
    assert len(keys) >= 2
    for key in keys:
        sigma = float(key.split("/sigma")[1])
        program = _line("blur", [(sigma, 0.0)], size // 2)
        image = colors[f"{group}/input"][:1]
        height, width = image.shape[1:3]
        # Zeros are what lies around an image anyway.
        square = np.pad(image, ((0, 0), (0, 0), (0, height - width), (0, 0)))
        result = _run(program, square, [[0.0, 0.0]])[:, :, :width]
        # What is left out of long kernels weighs 5e-4 in all.
        short = size // 2 <= host_kernels.BLUR_REACH * sigma
        assert_close("Gaussian blur", result, colors[key], 2e-6 if short else 3e-4)


@pytest.mark.parametrize("number", [1, 2])
def test_crop_and_resize_agrees_with_the_reference(number, golden, assert_close):
    arrays = golden("data_resize")
    image = arrays[f"crop/{number}/input_uint8"]
    keys = [key for key in arrays if key.startswith(f"crop/{number}/box")]
    outputs = [key for key in keys if "/out" in key]
    squares = 0
    for key in outputs:
        height, width = (int(side) for side in key.split("/out")[1].split("x"))
        if height != width:
            continue
        squares += 1
        box = np.int32(arrays[key.split("/out")[0] + "_y_x_h_w"])
        result = tf.function(
            lambda image, box, size=height: host_op.views(
                image,
                box[None],
                None,
                np.zeros((1, 0), np.float32),
                np.zeros((0, host_kernels.PROGRAM_WIDTH), np.float32),
                size=size,
                as_floats=True,
            )[0]
        )(image, box)
        assert_close("Crop and bicubic resize", result.numpy(), arrays[key], 2e-6)
    assert squares >= 2


@pytest.mark.parametrize("adjustment", ["saturation", "hue"])
def test_a_hue_just_below_red_is_red(adjustment):
    # Rounded it is a full circle, which TensorFlow's adjust_saturation turns dark.
    more = np.nextafter(np.float32(0.2), np.float32(1))
    image = np.float32([[[[0.6, 0.2, more]]]])
    places = [float(adjustment != other) for other in NEUTRAL]
    program = _line("color_jitter", [(factor, 0.0) for factor in NEUTRAL.values()])
    result = _run(program, image, [[0.0, 0.0, 0.0, 0.0, 0.0, *places]])
    np.testing.assert_allclose(result, image, atol=1e-6)


# Against the plain operations ---------------------------------------------------------


def _program(name, **settings):
    settings = {**SETTINGS[name], **settings}
    return compiled.program(Composition((name,), {name: settings}, 20), [name])


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
    result = _run(_program(name, probability=0.7, **changes), overshooting, u)
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
    never = _run(_program(name, probability=0.0), images, u)
    np.testing.assert_array_equal(never, images)
    always = _run(_program(name, probability=1.0), images, u)
    # The first images are grey.
    assert (always != images)[9:].any(axis=(1, 2, 3)).all()


# Many at once, and what does not fit --------------------------------------------------

PROGRAM = np.concatenate([_line("flip", probability=0.5), _line("grayscale")])


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
        (1, (3, 8), _line("color_jitter")),
        (1, (3, 1), np.repeat(PROGRAM, 3, axis=0)),
        (1, (3, 9), _line("flip") * 0 + 7),  # no such operation
        (1, (3, 9), _line("flip") - np.eye(1, 12, 1, dtype=np.float32)),
        (1, (3, 9), _line("blur", number=-1)),
    ],
)
def test_what_does_not_belong_together_is_refused(num_images, num_draws, program):
    images = np.zeros((num_images, 12, 20, 3), np.uint8)
    boxes = np.tile(np.int32([0, 0, 12, 20]), (3, 1))
    with pytest.raises(tf.errors.InvalidArgumentError, match="do not belong together"):
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


def test_kernels_run_where_nothing_can_be_written():
    # As for a user without a home, and a package that belongs to another.
    script = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from simclr_jax.data.views import host_kernels\n"
        "assert host_kernels.memory_size(32, 40) > 6 * 32 * 32\n"
    )
    _printed(script)
