"""Nearest images against float64 NumPy, and which images ask."""

import numpy as np
import pytest
from report_samples import Page, clusters, make_sample, render

from simclr_jax.report import neighbours


@pytest.mark.parametrize(("n", "d", "k"), [(40, 5, 6), (7, 3, 6), (4, 9, 6), (2, 2, 6)])
def test_neighbours_are_those_of_the_definition(n, d, k):
    h = np.random.default_rng(n).normal(size=(n, d)).astype(np.float32)
    queries = np.arange(0, n, 2)
    found, similarities = neighbours.nearest(h, queries, k=k)
    assert found.shape == similarities.shape == (len(queries), min(k, n - 1))
    for query, images, values in zip(queries, found, similarities, strict=True):
        cosines = {
            i: float(np.dot(h[query].astype(float), h[i].astype(float)))
            / np.sqrt((h[query].astype(float) ** 2).sum())
            / np.sqrt((h[i].astype(float) ** 2).sum())
            for i in range(n)
            if i != query
        }
        expected = sorted(cosines, key=lambda i: -cosines[i])[:k]
        assert images.tolist() == expected
        np.testing.assert_allclose(values, [cosines[i] for i in expected], rtol=1e-12)


def test_scale_does_not_matter_and_equal_images_keep_their_order():
    h = np.array([[1, 0], [5, 0], [0, 0], [3, 0], [-1, 0]], np.float32)
    found, similarities = neighbours.nearest(h, np.array([3]), k=4)
    assert found.tolist() == [[0, 1, 2, 4]]
    np.testing.assert_allclose(similarities, [[1, 1, 0, -1]])


def test_one_image_has_no_neighbour():
    section = neighbours.section(make_sample(np.ones((1, 3))))
    assert "There is no other image" in render(section)


def test_queries_are_spread_over_the_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 40 + [-1] * 7)
    chosen = neighbours.choose(labels, len(labels), number=8)
    assert sorted(labels[chosen].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2]
    many = neighbours.choose(np.repeat(np.arange(1000), 2), 2000, number=8)
    assert len({*many // 2}) == 8
    assert many[0] // 2 == 0
    assert many[-1] // 2 == 999
    assert neighbours.choose(np.zeros(3, int), 3).tolist() == [0, 1, 2]
    assert neighbours.choose(None, 5).tolist() == [0, 1, 2, 3, 4]


def test_agreement_is_counted_where_both_classes_are_known():
    h, labels = clusters((10, 10, 10))
    labels[labels == 2] = -1
    sample = make_sample(h, labels, ("cat", "dog", "cow"))
    section = neighbours.section(sample)
    assert section.data["num_agreeing"] == section.data["num_known"] == 8 * 6
    page = render(section)
    assert page.count('class="agrees"') == 48
    assert "48 of 48 neighbours" in page
    assert 'class="differs"' not in page


def test_without_labels_nothing_agrees_or_differs():
    section = neighbours.section(make_sample(clusters((9, 9))[0]))
    page = render(section)
    assert 'class="agrees"' not in page
    assert 'class="differs"' not in page
    assert "no labels" in Page(page).text
