"""Neighbours and near-duplicates against all similarities in float64."""

import jax
import numpy as np
import pytest

from simclr_jax import parallel
from simclr_jax.embed import neighbours


def mesh_of(devices):
    return parallel.create_mesh(jax.devices()[:devices])


def all_similarities(features):
    x = features.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1)
    x = x / np.where(lengths > 0, lengths, 1)[:, None]
    return x @ x.T


def expected(features, k):
    """(indices, similarities) of the k nearest, ties by index."""
    similarities = np.round(all_similarities(features), 12)
    np.fill_diagonal(similarities, -np.inf)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarities, order, axis=1)


def found(features, k, *, devices=1, duplicates_above=0.98):
    blocks = list(
        neighbours.search(
            features, k, duplicates_above=duplicates_above, mesh=mesh_of(devices)
        )
    )
    assert [block.first for block in blocks] == [
        sum(len(b.indices) for b in blocks[:n]) for n in range(len(blocks))
    ]
    return tuple(
        np.concatenate([getattr(block, name) for block in blocks])
        for name in ("indices", "similarities", "pairs", "pair_similarities")
    )


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that divide neither the images nor the devices."""
    monkeypatch.setattr(neighbours, "_QUERIES", 16)
    monkeypatch.setattr(neighbours, "_IMAGES", 128)
    monkeypatch.setattr(neighbours, "_ROWS_IN_FLOAT64", 7)


@pytest.mark.parametrize("devices", [1, 8])
def test_neighbours_are_the_nearest_in_float64(small_blocks, devices):
    generator = np.random.default_rng(devices)
    # ReLU's features of an encoder that tells little apart: similarities are close.
    features = 5 + generator.random((301, 24)).astype(np.float32)
    indices, similarities, pairs, of_pairs = found(
        features, 5, devices=devices, duplicates_above=0.998
    )
    order, values = expected(features, 5)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(similarities, values, rtol=0, atol=1e-11)
    near = np.triu(all_similarities(features), 1)
    rows, columns = np.nonzero(near >= 0.998)
    assert 50 < len(rows) < 20_000
    np.testing.assert_array_equal(pairs, np.stack([rows, columns], axis=1))
    np.testing.assert_allclose(of_pairs, near[rows, columns], rtol=0, atol=1e-11)


def test_equally_near_images_come_by_their_numbers(small_blocks):
    # More copies than candidates, across blocks, among others of other lengths.
    generator = np.random.default_rng(3)
    features = generator.normal(size=(200, 9)).astype(np.float32)
    copies = np.sort(generator.choice(200, 60, replace=False))
    features[copies] = features[copies[0]]
    indices, similarities, pairs, _ = found(features, 4, devices=2)
    for copy in copies:
        np.testing.assert_array_equal(indices[copy], copies[copies != copy][:4])
        np.testing.assert_array_equal(similarities[copy], 1)
    assert len(pairs) == 60 * 59 // 2
    np.testing.assert_array_equal(pairs[:59, 1], copies[1:])


def test_length_does_not_count_and_nothing_is_like_nothing():
    features = np.array([[1, 1], [500, 500], [0, 0], [-1, -1], [1, 0]], np.float32)
    indices, similarities, pairs, _ = found(features, 4)
    np.testing.assert_array_equal(indices[0], [1, 4, 2, 3])
    np.testing.assert_allclose(similarities[0], [1, 0.5**0.5, 0, -1], atol=1e-11)
    np.testing.assert_array_equal(indices[2], [0, 1, 3, 4])
    np.testing.assert_array_equal(pairs, [[0, 1]])


def test_the_threshold_is_that_of_float64():
    # Two pairs whose similarities float32 confuses with the threshold.
    angles = np.arccos([0.98 - 2e-8, 0.98 + 2e-8])
    features = np.zeros((4, 4), np.float64)
    for pair, angle in enumerate(angles):
        features[2 * pair, 2 * pair] = 1
        features[2 * pair + 1, 2 * pair : 2 * pair + 2] = np.cos(angle), np.sin(angle)
    features = features.astype(np.float32)
    exact = all_similarities(features)
    expected_pairs = [p for p in ([0, 1], [2, 3]) if exact[*p] >= 0.98]
    assert len(expected_pairs) == 1
    np.testing.assert_array_equal(found(features, 1)[2], expected_pairs)


def test_two_images_have_each_other():
    features = np.eye(2, 3, dtype=np.float32)
    indices, similarities, pairs, of_pairs = found(features, 1)
    np.testing.assert_array_equal(indices, [[1], [0]])
    np.testing.assert_array_equal(similarities, [[0], [0]])
    assert len(pairs) == len(of_pairs) == 0
