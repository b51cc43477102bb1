"""What `encode` takes, against Pillow's own conversions."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.preprocessing import Preprocessing
from simclr_jax.weights import encoder
from simclr_jax.weights.given_images import GivenImages

AS_THEY_ARE = Preprocessing(12, 1.0)
NOISE = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), np.uint8)
GREY = NOISE[..., 0]


def seen(images, preprocessing=AS_THEY_ARE):
    """What the encoder sees of images of 12 x 12 pixels, in levels."""
    given = GivenImages(images)
    prepared = given.prepare(preprocessing, 0, len(given))
    assert prepared.dtype == np.float32
    return np.rint(prepared * 255).astype(int)


def rgb(image):
    return np.asarray(image.convert("RGB"), int)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x / 255, np.asfortranarray])
def test_grey_and_colour_arrays_of_every_rank(form):
    np.testing.assert_array_equal(seen(form(NOISE)), NOISE)
    np.testing.assert_array_equal(seen(form(NOISE[1])), NOISE[1:2])
    grey = np.repeat(GREY[..., None], 3, axis=-1)
    np.testing.assert_array_equal(seen(form(GREY)), grey)
    np.testing.assert_array_equal(seen(form(GREY[..., None])), grey)
    np.testing.assert_array_equal(seen(form(GREY[2])), grey[2:3])
    np.testing.assert_array_equal(seen(form(GREY[2, ..., None])), grey[2:3])
    mixed = [form(GREY[0]), form(NOISE[3]), form(GREY[1, ..., None])]
    np.testing.assert_array_equal(seen(mixed), [grey[0], NOISE[3], grey[1]])


def test_the_last_axis_says_whether_three_axes_are_one_image():
    # One image of 5 x 7 pixels; five grey ones of 7 x 8; five that are 3 wide.
    lengths = [len(GivenImages(np.zeros(s))) for s in [(5, 7, 3), (5, 7, 1), (5, 7, 8)]]
    assert lengths == [1, 1, 5]
    assert len(GivenImages(np.zeros((5, 7, 3, 1)))) == 5
    assert len(GivenImages(np.zeros((1, 9, 9)))) == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_images_of_pillow_of_any_mode(mode):
    image = Image.fromarray(NOISE[0]).convert(mode)
    np.testing.assert_array_equal(seen(image)[0], rgb(image))
    np.testing.assert_array_equal(seen([image, image])[1], rgb(image))


def test_alpha_is_dropped_as_training_drops_it():
    # Not blended: what is transparent keeps its colour.
    pixels = np.concatenate([NOISE[0], GREY[1][..., None]], axis=-1)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("RGBa")):
        assert np.abs(seen(image)[0] - rgb(image.convert("RGBA"))).max() == 0
    np.testing.assert_array_equal(seen(Image.fromarray(pixels))[0], NOISE[0])


@pytest.mark.parametrize("level", [65535, 4095])
def test_images_of_more_bits_are_scaled_as_in_training(level, tmp_path):
    wide = GREY[0].astype(np.uint16) * ((level + 1) // 256) + 7
    Image.fromarray(wide).save(tmp_path / "wide.png")
    of_a_run = Preprocessing(12, 1.0, white_level=level)
    for image in (
        *(wide, Image.fromarray(wide), Image.fromarray(wide.astype(np.int32))),
        tmp_path / "wide.png",
    ):
        np.testing.assert_array_equal(seen(image, of_a_run)[0, ..., 0], GREY[0])
        with pytest.raises(ValueError, match="training saw 8 bits alone"):
            seen(image)


def test_paths_of_files_are_read_as_training_reads_them(tmp_path):
    pathlib.Path(tmp_path / "a").mkdir()
    files = [tmp_path / "a" / "ü 1.png", tmp_path / "2.bmp", tmp_path / "wrong.png"]
    Image.fromarray(NOISE[0]).save(files[0])
    Image.fromarray(GREY[1]).save(files[1])
    Image.fromarray(NOISE[2]).save(files[2], "JPEG", quality=95)
    expected = [rgb(Image.open(file)) for file in files]
    np.testing.assert_array_equal(seen(files), expected)
    np.testing.assert_array_equal(seen([str(file) for file in files]), expected)
    np.testing.assert_array_equal(seen(str(files[1])), expected[1:2])
    column = np.array([str(file) for file in files], object)  # as of a table
    np.testing.assert_array_equal(seen(column), expected)


REFUSED = [
    (np.zeros((3, 12, 10), "u1"), r"\(3, 12, 10\), channels first: .*three grey"),
    (np.zeros((2, 3, 12, 10), "u1"), "channels first: .*moveaxis"),
    (np.zeros((2, 1, 12, 10), "u1"), "channels first"),
    (np.zeros((12, 12, 4), "u1"), r"4 channels: .* dropped by images\[..., :3\]"),
    (np.zeros((2, 12, 12, 4), "u1"), "4 channels"),
    (np.zeros((12, 12, 2), "u1"), r"2 channels: .* dropped by images\[..., :1\]"),
    (np.zeros((12, 12, 12, 12), "u1"), r"must be \[H, W, 3\], or \[H, W, 1\]"),
    (np.zeros(12, "u1"), r"shape \(12,\)"),
    (GREY.astype(np.uint16), "dtype uint16: must be uint8 or float"),
    (Image.fromarray(GREY[0].astype("f4")), "above the white level 1"),
    (Image.fromarray(GREY[0].astype("i4") - 500), "dtype int32: must be uint8"),
]


@pytest.mark.parametrize(("image", "words"), REFUSED)
def test_what_could_mean_something_else_is_refused(image, words):
    with pytest.raises(ValueError, match=words):
        seen(image)


def test_the_bad_one_of_many_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(NOISE[0]).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-60])
    for bad, words in (
        (NOISE[0].astype(float), r"values in \[\d+, 255\]: must be in \[0, 1\]"),
        (np.zeros((12, 12, 4), "u1"), "4 channels"),
        (np.zeros((2, 12, 12, 3), "u1"), r"\(2, 12, 12, 3\)"),
        (tmp_path / "none.jpg", r"file .*none.jpg: cannot be read \(No such file"),
        (str(tmp_path / "text.jpg"), "file .*text.jpg: cannot be read .*no image"),
        (tmp_path / "cut.jpg", "file .*cut.jpg: cannot be decoded .*cut short"),
        (tmp_path, r"cannot be read \(Is a directory\)"),
        (None, "are of type NoneType"),
    ):
        with pytest.raises(ValueError, match=rf"^images\[2\]: .*{words}"):
            seen([NOISE[0], GREY[0], bad, NOISE[1]])
    floats = NOISE / 255
    floats[3, 2, 2] = 1.5
    with pytest.raises(ValueError, match=r"^images\[3\]: float image has values"):
        seen(floats)


def test_only_one_batch_is_open_at_a_time(tmp_path):
    files = []
    for number in range(7):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(NOISE[number % 4]).save(files[-1])

    def encode(batch):
        # The files of later batches are not needed yet.
        for file in files[: len(batch)]:
            file.unlink()
        del files[: len(batch)]
        return batch.mean(axis=(1, 2))

    expected = NOISE[np.arange(7) % 4].mean(axis=(1, 2)) / 255
    h = encoder.encode_in_batches(encode, AS_THEY_ARE, [*files], batch_size=3)
    np.testing.assert_allclose(h, expected, rtol=1e-5)
