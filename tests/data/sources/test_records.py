"""Decoding of files: the part that the crops need, with the pixels of the whole."""

import io
import pathlib

import numpy as np
import pytest
import skimage
from cases import first
from PIL import Image

from simclr_jax.data import tf_decode as decode
from simclr_jax.data.tf_cpu import tf

PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg")
# Keyword arguments of Pillow; subsampling 0 is 4:4:4, 1 is 4:2:2 and 2 is 4:2:0.
FILES = {
    "4:4:4": {"format": "JPEG", "subsampling": 0},
    "4:2:2": {"format": "JPEG", "subsampling": 1},
    "4:2:0": {"format": "JPEG", "subsampling": 2},
    "4:2:0, progressive": {"format": "JPEG", "subsampling": 2, "progressive": True},
    "4:2:0, coarse": {"format": "JPEG", "subsampling": 2, "quality": 20},
    "grey": {"format": "JPEG"},
    "PNG": {"format": "PNG"},
    "grey PNG": {"format": "PNG"},
}


def _file(photograph, kind):
    path = pathlib.Path(skimage.data_dir) / photograph
    with Image.open(path) as image:
        # Sides that no block divides.
        part = image.convert("L" if "grey" in kind else "RGB").crop((3, 5, 394, 300))
    buffer = io.BytesIO()
    part.save(buffer, **{"quality": 90, **FILES.get(kind, {"format": kind})})
    return buffer.getvalue()


def _random_boxes(count, height, width):
    """Boxes [count, 2, 4]: small and large, some at the image's borders."""
    generator = np.random.default_rng(0)
    sides = generator.integers(1, (height + 1, width + 1), (count, 2, 2))
    sides[::2] = np.minimum(sides[::2], 40)
    starts = generator.integers(0, (height, width) - sides + 1)
    starts[::5] = ((height, width) - sides)[::5]
    starts[::7] = 0
    return np.concatenate([starts, sides], axis=-1).astype(np.int32)


@pytest.fixture(scope="module")
def decode_crops():
    """decode_crops(content, boxes) -> (image, boxes within it)."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([None, 4], tf.int32),
        ],
        autograph=False,
    )
    def run(content, boxes):
        return decode.decode_crops(content, decode.image_shape(content), boxes)

    return lambda *arguments: [result.numpy() for result in run(*arguments)]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("photograph", first(1, [*PHOTOGRAPHS]))
def test_crops_have_the_pixels_of_the_whole_image(photograph, kind, decode_crops):
    content = _file(photograph, kind)
    whole = decode.decode_rgb(content).numpy()
    assert whole.shape == (295, 391, 3)
    for boxes in _random_boxes(150, *whole.shape[:2]):
        part, moved = decode_crops(content, boxes)
        np.testing.assert_array_equal(moved[:, 2:], boxes[:, 2:])
        for (y, x, h, w), (top, left, _, _) in zip(boxes, moved, strict=True):
            crop = part[top : top + h, left : left + w]
            np.testing.assert_array_equal(crop, whole[y : y + h, x : x + w])


@pytest.mark.parametrize("kind", ["4:2:0", "4:2:0, progressive", "PNG"])
def test_no_more_of_a_jpeg_is_decoded_than_needed(kind, decode_crops):
    content = _file("coffee.png", kind)
    boxes = np.int32([[101, 150, 20, 30], [110, 200, 40, 10]])
    part, moved = decode_crops(content, boxes)
    if kind == "PNG":
        assert part.shape == (295, 391, 3)
        np.testing.assert_array_equal(moved, boxes)
        return
    # The rows asked for, and besides the columns at most two margins.
    assert part.shape[0] == 49
    assert 60 <= part.shape[1] <= 60 + 4 * 32
    np.testing.assert_array_equal(moved[:, 0], [0, 9])


@pytest.mark.parametrize("kind", [*FILES, "GIF"])
def test_the_shape_is_read_from_the_header(kind):
    content = _file("coffee.png", kind)
    shape = tf.function(decode.image_shape, autograph=False)(tf.constant(content))
    assert shape.dtype == tf.int32
    np.testing.assert_array_equal(shape, [295, 391])
    if kind == "GIF":
        return  # decoded to find its shape
    # Nothing after the header is needed.
    header = content[: 24 if kind == "PNG" else 1024]
    np.testing.assert_array_equal(decode.image_shape(header), [295, 391])


def test_decoding_is_accurate():
    # TensorFlow's default transform is off by up to 3 levels from other libraries'.
    content = _file("coffee.png", "4:4:4")
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image)
    difference = np.abs(decode.decode_rgb(content).numpy().astype(int) - expected)
    assert difference.max() <= 1
