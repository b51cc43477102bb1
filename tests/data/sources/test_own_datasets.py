"""One's own files: `folder:` and `prepare` see the same, by all decoders."""

import io
import json
import logging

import numpy as np
import pytest
from PIL import Image, ImageOps
from sample_images import encoded
from simclr_settings import CROP

from simclr_jax.data import image_files, optional, pipeline
from simclr_jax.data.sources import (
    folder,
    in_memory,
    measured,
    pixels,
    reading,
    registry,
)
from simclr_jax.data.views.composition import Composition
from simclr_jax.errors import BadRecord, DataError
from simclr_jax.prepare import build, image_check

RNG = np.random.default_rng(0)
VIEW = Composition(("crop",), {"crop": CROP}, image_size=8)
TURNED = np.zeros((40, 60, 3), np.uint8)
TURNED[:20, :, 0] = 255


def _oriented(orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture = Image.fromarray(TURNED)
    picture.save(buffer, "JPEG", exif=exif, quality=95, **options)
    return buffer.getvalue()


def _grey16(top, shape=(12, 14)):
    values = RNG.integers(0, top + 1, shape).astype(np.uint16)
    values[0, 0] = top
    return values


def _write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            Image.fromarray(content).save(path)
    return root


def _prepare(root, output, **options):
    options = build.Options(input=str(root), **options)
    manifest = build.prepare(options, str(output), num_workers=1)
    return registry.open_source(f"prepared:{output}", split="all"), manifest


def _all(source):
    return pixels.read(source, np.arange(source.num_examples))[0]


def _mixed(root):
    return _write(
        root,
        {
            "0.png": _grey16(4000),
            "1.tif": _grey16(1000),
            "2.jpg": _oriented(6),
            "3.jpg": encoded("JPEG"),
            "4.tiff": encoded("TIFF", frames=2),
            "5.gif": encoded("GIF", frames=2),
            "6.webp": encoded("WEBP", lossless=True),
            "7.jpg": _oriented(3),
            "8.png": encoded("PNG", mode="RGBA"),
        },
    )


def test_all_decoders_and_both_doors_agree(tmp_path):
    files = folder.FolderSource(str(_mixed(tmp_path / "files")))
    assert files.white_level == 4095
    by_pillow = _all(files)
    records, labels = files.read(np.arange(9))
    pairs = zip(records, labels, strict=True)
    by_graph = [reading.decode_here(files, *pair)[0] for pair in pairs]
    held = in_memory.hold(files, limit_mb=1)
    prepared, manifest = _prepare(tmp_path / "files", tmp_path / "out")
    assert prepared.white_level == manifest["white_level"] == 4095
    assert prepared.exif_orientation
    assert manifest["handled"]["of more than 8 bits, scaled"] == 2
    assert manifest["handled"]["turned upright (EXIF orientation)"] == 2
    assert files.format_counts == manifest["handled"]
    for number, (one, *others) in enumerate(
        zip(by_pillow, by_graph, _all(held), _all(prepared), strict=True)
    ):
        exact = others if number not in (2, 7) else others[:-1]
        for other in exact:
            np.testing.assert_array_equal(one, other, err_msg=str(number))
        # A turned JPEG is coded again, which shows at edges of colours.
        assert np.abs(one.astype(int) - others[-1]).mean() < 1.5
    assert by_pillow[0].max() == 4000 >> 4
    assert by_pillow[1].max() == 1000 >> 4
    assert by_pillow[2].shape == (60, 40, 3)
    assert by_pillow[2][30, [5, 35], 0].tolist() == [0, 254]


@pytest.mark.slow  # compiles a crop
def test_the_pipelines_make_the_same_views(tmp_path, monkeypatch):
    files = folder.FolderSource(str(_mixed(tmp_path)))
    settings = {"seed": 0, "batch_size": 4, "stop_step": 2}
    by_graph = [*pipeline.train_batches(files, VIEW, **settings)]
    monkeypatch.setattr(
        optional, "is_installed", lambda package: package != "tensorflow"
    )
    by_threads = [*pipeline.train_batches(files, VIEW, **settings)]
    for one, other in zip(by_graph, by_threads, strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])


@pytest.mark.parametrize(
    ("tops", "level"), [((200, 255), 255), ((900, 70), 1023), ((65535, 3), 65535)]
)
def test_the_white_level_is_that_of_all_images(tops, level, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = _write(
        tmp_path / "in",
        {f"{n}.png": _grey16(top) for n, top in enumerate(tops)},
    )
    files = folder.FolderSource(str(root))
    assert files.white_level == level
    assert f"white level {level}, by the largest value, {max(tops)}, of 2 of 2" in (
        caplog.text
    )
    prepared, manifest = _prepare(root, tmp_path / "out")
    assert manifest["white_level"] == level
    for one, other in zip(_all(files), _all(prepared), strict=True):
        np.testing.assert_array_equal(one, other)


def test_floats_in_0_to_1_are_scaled(tmp_path):
    values = np.linspace(0, 1, 12 * 14, dtype=np.float32).reshape(12, 14)
    root = _write(tmp_path / "in", {"a.tif": values, "b.tif": values / 2})
    files = folder.FolderSource(str(root))
    prepared, _ = _prepare(root, tmp_path / "out")
    assert files.white_level == prepared.white_level == 1
    for source in (files, prepared):
        first, second = _all(source)
        np.testing.assert_array_equal(first[..., 0], np.rint(values * 255))
        np.testing.assert_array_equal(second[..., 0], np.rint(values / 2 * 255))


def test_what_was_measured_is_kept_until_files_change(tmp_path, monkeypatch):
    root = _write(tmp_path, {"a.png": _grey16(4000), "b.png": _grey16(50)})
    assert folder.FolderSource(str(root)).white_level == 4095
    decoded = []
    peak = measured.own_images.peak
    monkeypatch.setattr(
        measured.own_images, "peak", lambda data: decoded.append(1) or peak(data)
    )
    assert folder.FolderSource(str(root)).white_level == 4095
    assert not decoded
    assert folder.FolderSource(str(root), white_level=65535).white_level == 65535
    _write(root, {"c.png": _grey16(5000)})
    assert folder.FolderSource(str(root)).white_level == 16383
    assert len(decoded) == 3


def test_an_image_above_the_measured_level_is_named(tmp_path, monkeypatch):
    files = {f"{n}.png": _grey16(1000 if n else 30_000) for n in range(6)}
    root = _write(tmp_path, files)
    monkeypatch.setattr(measured, "MOST_DECODED", 3)
    # The same at each start, and without the first.
    source = folder.FolderSource(str(root))
    assert source.white_level == 1023
    with pytest.raises(BadRecord, match=r"/0.png: cannot be read \(.*30000, abo"):
        pixels.read(source, np.arange(6))


def test_orientation_and_level_can_be_chosen(tmp_path):
    root = _write(tmp_path / "in", {"a.jpg": _oriented(6), "b.png": _grey16(4000)})
    options = {"exif_orientation": False, "white_level": 65535}
    files = registry.open_source(f"folder:{root}", split="all", **options)
    prepared, manifest = _prepare(root, tmp_path / "out", **options)
    assert not files.exif_orientation
    assert not prepared.exif_orientation
    assert "turned upright (EXIF orientation)" not in manifest["handled"]
    assert prepared.white_level == 65535
    for source in (files, prepared):
        first, second = _all(source)
        assert first.shape == TURNED.shape
        assert second.max() == 4000 >> 8
    with pytest.raises(DataError, match=r"white level 65535, .*--white_level=4095"):
        registry.open_source(f"prepared:{tmp_path}/out", split="all", white_level=4095)


def test_datasets_of_earlier_versions_are_as_they_were(tmp_path):
    root = _write(tmp_path / "in", {"a.png": encoded("PNG"), "b.png": _grey16(4000)})
    options = {"exif_orientation": False, "white_level": 65535}
    _prepare(root, tmp_path / "out", **options)
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["white_level"], manifest["handled"]
    for name in options:
        del manifest["options"][name]
    path.write_text(json.dumps(manifest))
    source = registry.open_source(f"prepared:{tmp_path}/out", split="all")
    assert (source.exif_orientation, source.white_level) == (False, None)
    assert _all(source)[1].max() == 4000 >> 8
    with pytest.raises(DataError, match=r"exif_orientation=True: .*=False"):
        build.prepare(
            build.Options(input=str(root)), str(tmp_path / "out"), num_workers=1
        )


@pytest.mark.parametrize("orientation", [2, 5, 7, 8])
def test_a_shrunk_image_is_upright(orientation):
    content = _oriented(orientation)
    checked = image_check.check_image(content, image_check.Encoding(short_side=20))
    assert checked.resized
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image)
    expected = expected.resize((checked.width, checked.height))
    found = np.asarray(Image.open(io.BytesIO(checked.content)))
    assert abs(found.astype(int) - np.asarray(expected)).mean() < 4
    assert Image.open(io.BytesIO(checked.content)).getexif().get(0x0112, 1) == 1


def test_large_jpegs_are_shrunk_while_they_are_decoded(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 60 * 40 // 3)
    content = _oriented(6)
    with pytest.raises(image_files.NotAnImage, match=r"60 x 40 .*resize_short_side="):
        image_check.check_image(content, image_check.Encoding())
    checked = image_check.check_image(content, image_check.Encoding(short_side=10))
    assert (checked.width, checked.height, checked.resized) == (10, 15, True)
    found = np.asarray(Image.open(io.BytesIO(checked.content)))
    assert found[7, 1, 0] < 10
    assert found[7, 8, 0] > 245
    with pytest.raises(image_files.NotAnImage, match="still more than 800"):
        image_check.check_image(content, image_check.Encoding(short_side=35))
    with pytest.raises(image_files.NotAnImage, match="to be shrunk first"):
        image_check.check_image(encoded("PNG"), image_check.Encoding(short_side=10))


def test_files_to_convert_first_are_said(tmp_path, caplog):
    heic = b"\0\0\0\x18ftypheic" + bytes(100)
    jpegs = {name: encoded("JPEG") for name in ("a.jpg", "named.HEIC")}
    _write(tmp_path, {**jpegs, "b.HEIC": heic, "c.heif": heic})
    caplog.set_level("INFO")
    assert folder.FolderSource(str(tmp_path)).num_examples == 2
    assert "2 HEIC, HEIF or AVIF, which are not decoded here: convert to" in caplog.text
    for name in jpegs:
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"holds no image .*2 HEIC, HEIF or AVIF"):
        folder.FolderSource(str(tmp_path))
    with pytest.raises(DataError, match="is HEIC, which is not decoded here"):
        build.prepare(
            build.Options(input=str(tmp_path)), str(tmp_path / "out"), num_workers=1
        )


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_is_cut_short_is_said_plainly(kind, tmp_path):
    content = encoded(kind, size=(200, 160))
    _write(tmp_path, {"x.jpg": content[: len(content) // 2]})
    source = folder.FolderSource(str(tmp_path))
    for read in (
        lambda: reading.check_record(source, 0),
        lambda: pixels.read(source, np.array([0])),
    ):
        with pytest.raises(BadRecord) as error:
            read()
        assert str(error.value) == (
            f"file {tmp_path}/x.jpg: cannot be decoded (the file is cut short or "
            "damaged); `python -m simclr_jax.prepare` finds and leaves out such files"
        )
