"""Maps: reproducible, for any number of images, and their sheet of pictures."""

import base64
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from report_samples import clusters, make_sample, render

from simclr_jax.errors import RunFailed
from simclr_jax.report import embedding_map, thumbnails


def test_the_map_depends_on_the_seed_alone_and_keeps_clusters_apart():
    h, labels = clusters((30, 30, 30), width=20)
    points, method = embedding_map.place(h, seed=3)
    again, _ = embedding_map.place(h.copy(), seed=3)
    np.testing.assert_array_equal(points, again)
    assert "t-SNE" in method
    assert "seed 3" in method
    assert points.shape == (90, 2)
    assert np.abs(points).max() == pytest.approx(1)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.95


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_a_few_images_are_placed_too(count):
    h = np.random.default_rng(count).normal(size=(count, 6))
    points, method = embedding_map.place(h, seed=0)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert method == "the first two principal components"
    if count > 2:
        x = h / np.linalg.norm(h, axis=1, keepdims=True)
        x -= x.mean(axis=0)
        values = np.sort(np.linalg.eigvalsh(x.T @ x))[::-1][:2]
        spread = np.sort((points - points.mean(axis=0)).var(axis=0))[::-1]
        np.testing.assert_allclose(spread[1] / spread[0], values[1] / values[0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-4])
def test_a_collapsed_encoder_is_named(scale):
    h = np.ones((40, 4)) * np.linspace(1, 2, 40)[:, None] * scale
    with pytest.raises(RunFailed, match=r"all 40 images .* collapsed"):
        embedding_map.place(h, seed=0)


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (5, 3, 2), (6, 3, 2)]
)
def test_pictures_lie_in_the_sheet_row_by_row(count, columns, rows):
    pictures = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    sheet, found = thumbnails.sheet(pictures)
    assert found == columns
    assert sheet.shape == (rows * 4, columns * 4, 3)
    for i in range(count):
        row, column = divmod(i, columns)
        tile = sheet[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        np.testing.assert_array_equal(tile, pictures[i])
    assert not sheet[-4:, (count - 1) % columns * 4 + 4 :].any()


def test_data_uris_hold_the_picture():
    picture = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
    kind, content = thumbnails.data_uri(picture, lossless=True).split(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    np.testing.assert_array_equal(shown, picture)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (300, 40), (1, 1)])
def test_thumbnails_are_the_central_square(shape):
    image = np.zeros((*shape, 3), np.uint8)
    size = min(shape)
    top, left = ((x - size) // 2 for x in shape)
    image[top : top + size, left : left + size] = 200
    assert (thumbnails.of_image(image, 32) == 200).all()


def test_points_carry_the_number_class_and_colour_of_their_image():
    h, labels = clusters((3, 4))
    labels[0] = -1
    section = embedding_map.section(make_sample(h, labels, ("a", "b")), seed=0)
    groups = section.data["plot"]["groups"]
    assert [group["name"] for group in groups] == ["a", "b", None]
    assert [group["legend"] for group in groups] == [True] * 3
    assert groups[2]["colour"] is None
    assert groups[2]["images"] == [0]
    points, _ = embedding_map.place(h, seed=0)
    for group in groups:
        placed = np.stack([group["x"], group["y"]], axis=1)
        np.testing.assert_allclose(placed, points[group["images"]], atol=1e-4)
    assert "data:image/webp" in render(section)


def test_a_thousand_classes_have_hues_and_no_legend(monkeypatch):
    names = tuple(f"class {i}" for i in range(1000))
    placed = np.random.default_rng(0).normal(size=(1000, 2)), "no method"
    monkeypatch.setattr(embedding_map, "place", lambda h, seed: placed)
    sample = make_sample(np.ones((1000, 2)), np.arange(1000), names)
    section = embedding_map.section(sample, seed=0)
    groups = section.data["plot"]["groups"]
    assert len(groups) == 1000
    assert not any(group["legend"] for group in groups)
    colours = [embedding_map.colour(i, 1000) for i in range(1000)]
    assert len({*colours}) > 500
    assert all(a != b for a, b in itertools.pairwise(colours))
    assert len({embedding_map.colour(i, 10) for i in range(10)}) == 10
    # With a page's Plotly, 4.7 MB, it must stay below 8 MB.
    assert len(render(section)) < 2_000_000
