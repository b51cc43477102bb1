"""The operations of every back-end agree with the reference's recorded values.

Back-ends: the graph of TensorFlow (`definition.py`), the code compiled for the host
(`host_kernels.py`), and JAX (`device.py`, by its public names).
"""

import functools

import jax
import numpy as np
import pytest
from host_programs import NEUTRAL, line, on_squares, run_program
from simclr_settings import JITTER, colour_cases

from simclr_jax.data import augment_jax
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition, host_kernels, host_op

# Name in the recorded values -> (operation, its settings).
COLOURS = {
    "brightness_v1_additive": ("brightness", {"mode": "additive"}),
    "brightness_v2_multiplicative": ("brightness", {}),
    "contrast": ("contrast", {}),
    "saturation": ("saturation", {}),
    "hue": ("hue", {}),
}
LETTERS = "bcsh"


class Graph:
    """TensorFlow's operations, one image at a time."""

    form = ""  # on the fidelity page
    clips = False

    def colour(self, name, images, factors):
        """One adjustment of images [N, H, W, 3] by factors [N]."""
        operation, settings = COLOURS[name]
        function = getattr(definition, f"adjust_{operation}")
        return np.stack(
            [
                function(tf.constant(image), float(factor), **settings)
                for image, factor in zip(images, factors, strict=True)
            ]
        )

    def jitter(self, images, factors, orders):
        """All adjustments by the same factors in each image's order, as [N, 4]."""
        b, c, s, h = factors
        shares = [(b - 0.2) / 1.6, (c - 0.2) / 1.6, (s - 0.2) / 1.6, (h + 0.2) / 0.4]
        u = np.float32([[0.0, *shares, *places] for places in orders])
        return self._jitter(images, u)

    def _jitter(self, images, u):
        settings = {**JITTER, "probability": 0.8}
        return np.stack(
            [
                definition.color_jitter(
                    tf.constant(image), tf.constant(row), **settings
                )
                for image, row in zip(images, u, strict=True)
            ]
        )

    def grayscale(self, images):
        return np.stack([definition.to_grayscale(image) for image in images])

    def blur(self, images, sigmas, size):
        return np.stack(
            [
                definition.gaussian_blur(tf.constant(image), float(sigma), size)
                for image, sigma in zip(images, sigmas, strict=True)
            ]
        )

    def blur_tolerance(self, sigma, size):
        return 2e-6

    def sizes(self, sizes):
        """Those that crops can be resized to."""
        return sizes

    def crop_and_resize(self, image, boxes, size):
        """Parts [N, *size, 3] of one image uint8."""
        return np.stack(
            [definition.crop_and_resize(image, box.tolist(), size) for box in boxes]
        )


class Compiled:
    """Programs of the compiled operations on square views."""

    form = ", compiled"
    clips = True  # after each adjustment

    def colour(self, name, images, factors):
        operation, settings = COLOURS[name]
        # The one comes first; the others leave the image unchanged.
        places = [float(operation != other) for other in NEUTRAL]
        additive = float(settings.get("mode") == "additive")
        results = []
        for image, factor in zip(images, factors, strict=True):
            values = NEUTRAL | {operation: factor}
            if additive and values["brightness"] == 1.0:
                values["brightness"] = 0.0
            ranges = [(value, 0.0) for value in values.values()]
            program = line("color_jitter", ranges, additive)
            u = [[0.0, 0.0, 0.0, 0.0, 0.0, *places]]
            results.append(on_squares(program, image[None], u)[0])
        return np.stack(results)

    def jitter(self, images, factors, orders):
        program = line("color_jitter", [(factor, 0.0) for factor in factors])
        u = [[0.0, 0.0, 0.0, 0.0, 0.0, *places] for places in orders]
        return on_squares(program, images, u)

    def grayscale(self, images):
        return on_squares(line("grayscale"), images, np.zeros((len(images), 1)))

    def blur(self, images, sigmas, size):
        height, width = images.shape[1:3]
        # Zeros are what lies around an image anyway.
        squares = np.pad(images, ((0, 0), (0, 0), (0, height - width), (0, 0)))
        results = [
            run_program(line("blur", [(sigma, 0.0)], size // 2), square[None], [[0, 0]])
            for square, sigma in zip(squares, sigmas, strict=True)
        ]
        return np.concatenate(results)[:, :, :width]

    def blur_tolerance(self, sigma, size):
        # The omitted taps of long kernels weigh 5e-4 together.
        return 2e-6 if size // 2 <= host_kernels.BLUR_REACH * sigma else 3e-4

    def sizes(self, sizes):
        return [(height, width) for height, width in sizes if height == width]

    def crop_and_resize(self, image, boxes, size):
        operation = tf.function(
            lambda image, boxes: host_op.views(
                image,
                boxes,
                None,
                np.zeros((boxes.shape[0], 0), np.float32),
                np.zeros((0, host_kernels.PROGRAM_WIDTH), np.float32),
                size=size[0],
                as_floats=True,
            )
        )
        return operation(image, tf.constant(boxes)).numpy()


class Device(Graph):
    """JAX, all images in one batch, so that each has its own factor."""

    form = ", batched"

    def colour(self, name, images, factors):
        operation, settings = COLOURS[name]
        function = getattr(augment_jax, f"adjust_{operation}")
        return jax.jit(functools.partial(function, **settings))(
            images, np.float32(factors)
        )

    def _jitter(self, images, u):
        settings = {**JITTER, "probability": 0.8}
        function = functools.partial(augment_jax.color_jitter, **settings)
        return jax.jit(function)(images, u)

    def grayscale(self, images):
        return jax.jit(augment_jax.to_grayscale)(images)

    def blur(self, images, sigmas, size):
        function = functools.partial(augment_jax.gaussian_blur, kernel_size=size)
        return jax.jit(function)(images, np.float32(sigmas))

    def crop_and_resize(self, image, boxes, size):
        images = np.float32(image) / np.float32(255)
        function = functools.partial(augment_jax.crop_and_resize, size=size)
        return jax.jit(function)(np.repeat(images[None], len(boxes), axis=0), boxes)


BACKENDS = {"graph": Graph, "compiled": Compiled, "device": Device}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]()


@pytest.mark.parametrize("group", ["A", "B", "C"])
@pytest.mark.parametrize("name", COLOURS)
def test_color_operation(group, name, backend, colors, assert_close):
    cases, tolerance = colour_cases(colors, group, name)
    images = colors[f"{group}/input"]
    result = backend.colour(
        name,
        np.tile(images, (len(cases), 1, 1, 1)),
        np.repeat([factor for factor, _ in cases], len(images)),
    )
    expected = np.concatenate([expected for _, expected in cases])
    if backend.clips:
        expected = np.clip(expected, 0, 1)
    assert_close(f"Colour: {name}", result[:, ::2, ::2], expected, tolerance)


@pytest.mark.parametrize("group", ["A", "B", "C"])
def test_color_jitter_in_two_orders(group, backend, colors, assert_close):
    images = colors[f"{group}/input"]
    orders, expected = [], []
    for letters in ("bcsh", "hscb"):
        places = [letters.index(letter) / 4 for letter in LETTERS]
        orders += [places] * len(images)
        expected.append(colors[f"{group}/chain_{letters}_clip_each"])
    factors = colors["chain_factors_b_c_s_h"]
    result = backend.jitter(np.tile(images, (2, 1, 1, 1)), factors, orders)
    expected = np.concatenate(expected)
    assert_close("Colour jitter, two orders", result[:, ::2, ::2], expected, 5e-6)


@pytest.mark.parametrize("group", ["A", "B", "C"])
def test_grayscale(group, backend, colors, assert_close):
    result = backend.grayscale(colors[f"{group}/input"])
    expected = colors[f"{group}/grayscale"]
    assert_close("Colour: grayscale", result[:, ::2, ::2], expected, 2e-6)


@pytest.mark.parametrize(("group", "size"), [("A", 3), ("B", 6), ("B", 22)])
def test_blur(group, size, backend, colors, assert_close):
    keys = [key for key in colors if key.startswith(f"{group}/blur/ks{size}/")]
    assert len(keys) >= 2
    sigmas = [float(key.split("/sigma")[1]) for key in keys]
    images = np.repeat(colors[f"{group}/input"][:1], len(keys), axis=0)
    results = np.asarray(backend.blur(images, sigmas, size))
    for key, sigma, result in zip(keys, sigmas, results, strict=True):
        tolerance = backend.blur_tolerance(sigma, size)
        assert_close("Gaussian blur", result, colors[key][0], tolerance)


def test_no_recorded_blur_is_left_out(colors):
    recorded = {key.split("/sigma")[0] for key in colors if "/blur/" in key}
    assert recorded == {"A/blur/ks3", "B/blur/ks6", "B/blur/ks22"}


@pytest.mark.parametrize("number", [1, 2])
def test_crop_and_resize(number, backend, golden, assert_close):
    arrays = golden("data_resize")
    image = arrays[f"crop/{number}/input_uint8"]
    outputs = [
        key for key in arrays if key.startswith(f"crop/{number}/box") and "/out" in key
    ]
    assert len(outputs) >= 4
    recorded = {tuple(map(int, key.split("/out")[1].split("x"))) for key in outputs}
    sizes = backend.sizes(sorted(recorded))
    assert (32, 32) in sizes
    compared = 0
    for height, width in sizes:
        keys = [key for key in outputs if key.endswith(f"/out{height}x{width}")]
        boxes = np.int32([arrays[key.split("/out")[0] + "_y_x_h_w"] for key in keys])
        result = backend.crop_and_resize(image, boxes, (height, width))
        expected = np.stack([arrays[key] for key in keys])
        assert_close("Crop and bicubic resize", result, expected, 2e-6)
        compared += len(keys)
    assert compared >= 2


@pytest.mark.parametrize("backend", [Compiled(), Device()], ids=["compiled", "device"])
@pytest.mark.parametrize(("name", "neutral"), [("saturation", 1.0), ("hue", 0.0)])
def test_a_hue_just_below_red_is_red(name, neutral, backend):
    # Rounded it is a full circle, which TensorFlow's adjust_saturation turns dark.
    more = np.nextafter(np.float32(0.2), np.float32(1))
    image = np.float32([[[[0.6, 0.2, more]]]])
    result = backend.colour(name, image, [neutral])
    np.testing.assert_allclose(result, image, atol=1e-6)
