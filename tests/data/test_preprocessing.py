"""Evaluation preprocessing, in NumPy and in TensorFlow."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from fidelity import TENSORFLOW
from PIL import Image

from simclr_jax.data.preprocessing import RESIZES, Preprocessing, resize_bicubic
from simclr_jax.data.tf_cpu import tf
from simclr_jax.data.views import definition
from simclr_jax.weights import encoder

TOLERANCE = 2e-6


def _numpy(image, size, proportion, resize="bicubic"):
    return Preprocessing(size, proportion, resize)(image)[0]


def _tensorflow(image, size, proportion, resize="bicubic"):
    return definition.center_crop_and_resize(
        image, image_size=size, crop_proportion=proportion, resize=resize
    ).numpy()


IMPLEMENTATIONS = pytest.mark.parametrize("prepare", [_numpy, _tensorflow])


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def reference(golden):
    return golden("data_resize")


@IMPLEMENTATIONS
@pytest.mark.parametrize("number", [0, 1, 2])
def test_agrees_with_the_reference(prepare, number, reference, fidelity):
    image = reference[f"eval/{number}/input_uint8"]
    what = f"Evaluation preprocessing ({prepare.__name__.strip('_')})"
    for result, key in (
        (prepare(image, 32, 0.875), "out32"),
        (prepare(image, 224, 0.875)[::4, ::4], "out224_every4th"),
    ):
        fidelity(what, result, reference[f"eval/{number}/{key}"], atol=TOLERANCE)


@IMPLEMENTATIONS
def test_leaves_an_image_of_the_size_alone_without_crop(prepare, reference):
    image = reference["eval/nocrop32/input_uint8"]
    result = prepare(image, 32, 1.0)
    for expected in (reference["eval/nocrop32/out32"], image / 255):
        np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (256, 256), (17, 40), (300, 401)]
)
def test_legacy_resize_is_that_of_tensorflow_1(prepare, height, width, fidelity):
    image = _noise(height, width, 3)
    size, short = 224, min(height, width)
    y, x = (height - short + 1) // 2, (width - short + 1) // 2
    square = image[y : y + short, x : x + short].astype(np.float32) / 255
    want = tf.compat.v1.image.resize_bicubic(square[None], (size, size))[0]
    got = prepare(image, size, 1.0, "bicubic_legacy")
    what = f"TensorFlow 1's bicubic resize ({prepare.__name__.strip('_')})"
    fidelity(what, got, np.clip(want, 0, 1), source=TENSORFLOW, atol=TOLERANCE)
    # It moves the image by up to half a pixel of the larger grid.
    assert np.abs(got - prepare(image, size, 1.0)).mean() > 0.01


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("proportion", [0.875, 1.0, 0.5, 0.65, 0.9])
def test_implementations_agree_on_random_sizes(proportion, resize):
    generator = np.random.default_rng(int(1000 * proportion))
    for height, width in generator.integers(20, 300, (12, 2)):
        image = _noise(height, width, 3, seed=height * width)
        np.testing.assert_allclose(
            _numpy(image, 32, proportion, resize),
            _tensorflow(image, 32, proportion, resize),
            rtol=0,
            # TensorFlow's positions of antialiased taps are float32.
            atol=1e-5 if resize == "bicubic_antialias" else TOLERANCE,
            err_msg=f"{height}x{width}",
        )


@pytest.mark.parametrize(("short", "proportion"), [(190, 0.65), (350, 0.65)])
def test_implementations_round_the_crop_alike(short, proportion):
    # 190 * 0.65 is half a pixel only in float32.
    image = _noise(short, short, 3)
    np.testing.assert_allclose(
        _numpy(image, 32, proportion),
        _tensorflow(image, 32, proportion),
        rtol=0,
        atol=TOLERANCE,
    )


@IMPLEMENTATIONS
def test_crop_is_central_and_odd_remainders_go_to_the_start(prepare):
    # 11 -> round(9.625) = 10 rows, of which the first is number (11 - 10 + 1) // 2 = 1.
    image = np.zeros((11, 11, 3), np.uint8)
    image[0], image[:, 0] = 255, 255
    np.testing.assert_array_equal(prepare(image, 10, 0.875), 0.0)


@IMPLEMENTATIONS
@pytest.mark.parametrize(("short", "side"), [(4, 2), (12, 8), (20, 12), (28, 18)])
def test_halves_round_to_even(prepare, short, side):
    # 0.625 of 4, 12, 20, 28 is 2.5, 7.5, 12.5, 17.5.
    image = _noise(short, short, 3)
    offset = (short - side + 1) // 2
    expected = image[offset : offset + side, offset : offset + side] / 255
    result = prepare(image, side, 0.625)
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE)


@IMPLEMENTATIONS
def test_output_is_float32_in_0_1(prepare):
    checks = 255 * np.kron(_noise(9, 9, 3) % 2, np.ones((5, 5, 1), np.uint8))
    result = prepare(checks, 64, 0.875)
    assert result.dtype == np.float32
    assert result.min() == 0
    assert result.max() == 1


@pytest.mark.parametrize(("old", "new"), [(7, 32), (100, 32), (32, 31), (1, 4)])
def test_resizing_keeps_constants(old, new):
    image = np.full((old, old + 3, 3), 0.3, np.float32)
    np.testing.assert_allclose(resize_bicubic(image, new), 0.3, rtol=1e-6)


def test_takes_a_batch_a_list_or_one_image():
    prepare = Preprocessing(image_size=24, crop_proportion=0.875)
    images = [_noise(40, 50, 3), _noise(31, 24, 3, seed=1), _noise(24, 24, 3, seed=2)]
    together = prepare(images)
    assert together.shape == (3, 24, 24, 3)
    for image, expected in zip(images, together, strict=True):
        np.testing.assert_array_equal(prepare(image), expected[None])
        np.testing.assert_array_equal(prepare(image[None]), expected[None])
    np.testing.assert_array_equal(prepare(np.stack(images[:1] * 2))[1], together[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_takes_floats_in_0_1(dtype):
    prepare = Preprocessing(image_size=16, crop_proportion=0.875)
    image = _noise(30, 20, 3)
    tolerance = 1e-3 if dtype == np.float16 else TOLERANCE
    result = prepare((image / 255).astype(dtype))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, prepare(image), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.int32), "dtype int32"),
        (np.zeros((8, 8, 3), bool), "dtype bool"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"shape \(8, 8, 1\)"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (np.zeros((8, 8), np.uint8), r"must be \[H, W, 3\]"),
        (np.full((8, 8, 3), 255.0), r"values in \[255, 255\].*\[0, 1\]"),
        (np.full((8, 8, 3), -0.1), "values in"),
        (np.full((8, 8, 3), np.nan), "values in"),
    ],
)
def test_refuses_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(image_size=8, crop_proportion=0.875)(image)


def test_a_picture_too_small_for_the_crop_is_refused():
    prepare = Preprocessing(image_size=8, crop_proportion=0.1)
    with pytest.raises(ValueError, match="too small"):
        prepare(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="must be"):
        prepare(np.zeros((0, 4, 3), np.uint8))


def test_a_pillow_image_is_taken():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    prepare = Preprocessing(image_size=8, crop_proportion=1.0)
    np.testing.assert_array_equal(prepare(Image.fromarray(pixels)), prepare(pixels))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images: must be an array or list of one"),
        (np.zeros((0, 8, 8, 3)), "images: must be an array or list of one"),
        (None, "images: are of type NoneType"),
        ("x.jpg", "images: are of type str"),
        (b"\xff\xd8", "images: are of type bytes"),
        ((np.zeros((8, 8, 3)) for _ in range(2)), "images: are of type generator"),
        ({"a": 1}, "images: are of type dict"),
        ([["a", "b"]], "images: are of type list"),
        (np.full((8, 8, 3), 1.0000001), r"values in \[1.0000001, 1.0000001\]"),
        (np.full((8, 8, 3), np.nan), "has NaN"),
    ],
)
def test_what_is_no_image_is_named(images, message):
    preprocessing = Preprocessing(image_size=8, crop_proportion=1.0)
    with pytest.raises(ValueError, match=message) as error:
        preprocessing(images)
    assert "\n" not in str(error.value)
    if not isinstance(images, list | str):  # `encode` takes paths
        with pytest.raises(ValueError, match=message):
            encoder.encode_in_batches(len, preprocessing, images, batch_size=1)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, None, "1"])
def test_a_batch_has_images(batch_size):
    preprocessing = Preprocessing(image_size=8, crop_proportion=1.0)
    with pytest.raises(
        ValueError, match=f"^batch_size={batch_size!r}: must be a whole"
    ):
        encoder.encode_in_batches(
            len, preprocessing, np.zeros((1, 8, 8, 3)), batch_size=batch_size
        )


def test_bfloat16_of_jax_is_a_float():
    preprocessing = Preprocessing(image_size=8, crop_proportion=1.0)
    pixels = np.linspace(0, 1, 192, dtype=np.float32).reshape(8, 8, 3)
    images = jnp.asarray(pixels, jnp.bfloat16)
    expected = preprocessing(np.asarray(images, np.float32))
    np.testing.assert_array_equal(preprocessing(images), expected)
    np.testing.assert_array_equal(preprocessing([images]), expected)


GREY16 = np.random.default_rng(0).integers(0, 4096, (12, 10)).astype(np.uint16)


@pytest.mark.parametrize(
    "image",
    [
        np.repeat(GREY16[..., None], 3, axis=-1),
        np.repeat(GREY16[..., None], 3, axis=-1).astype(np.int32),
        Image.fromarray(GREY16),
        Image.fromarray(GREY16.astype(np.float32)),
    ],
    ids=["uint16", "int32", "I;16", "F"],
)
def test_more_than_8_bits_are_scaled_by_the_recorded_white_level(image):
    of_12_bits = Preprocessing(8, 1.0, white_level=4095)
    of_8 = Preprocessing(8, 1.0)
    eight = np.repeat((GREY16 >> 4).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(of_12_bits([image]), of_8([eight]))
    with pytest.raises(ValueError, match="above the white level 1023"):
        Preprocessing(8, 1.0, white_level=1023)([image])
    if isinstance(image, np.ndarray):
        with pytest.raises(ValueError, match=r"dtype .*: .* saw 8 bits alone"):
            of_8(image)


def test_images_of_pillow_are_turned_where_training_turned_them():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    image = Image.open(buffer)
    (found,) = Preprocessing(8, 1.0, exif_orientation=True)(image)
    np.testing.assert_array_equal(found, np.rot90(pixels / 255, k=-1))
    np.testing.assert_array_equal(Preprocessing(8, 1.0)(image)[0], pixels / 255)
