"""Metrics against cases computed by hand and definitions written out."""

import fractions

import numpy as np
import pytest

from simclr_jax.evaluation import metrics


def test_top1_of_a_case_by_hand():
    assert metrics.top1(np.array([1, 0, 2, 0]), np.array([1, 2, 2, 0])) == 0.75


def test_mean_per_class_counts_classes_and_not_images():
    # Class 0: 3 of 4 right; class 1: 0 of 1; class 3: 1 of 1; class 2 has no image.
    predicted = np.array([0, 0, 0, 3, 0, 3])
    labels = np.array([0, 0, 0, 0, 1, 3])
    assert metrics.mean_per_class(predicted, labels) == pytest.approx(
        (0.75 + 0 + 1) / 3
    )
    assert metrics.top1(predicted, labels) == pytest.approx(4 / 6)


def test_average_precision_of_a_case_by_hand():
    # Ranked: + - + - - +. Precision 1 up to a recall of 1/3 (four levels: 0 to 0.3),
    # 2/3 up to 2/3 (0.4 to 0.6), 1/2 up to 1 (0.7 to 1).
    scores = np.array([6.0, 5, 4, 3, 2, 1])
    labels = np.array([1, 0, 1, 0, 0, 1])
    expected = (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11
    assert metrics.average_precision(scores, labels) == pytest.approx(expected)
    assert metrics.average_precision(-scores[::-1], labels[::-1]) != expected


def plain_average_precision(scores, labels):
    """From the definition in VOC's development kit, in whole fractions."""
    ranked = [
        labels[i]
        for i in sorted(range(len(scores)), key=lambda i: -scores[i])
        if labels[i] != -1
    ]
    points = []
    found = 0
    for rank, label in enumerate(ranked, start=1):
        found += label
        recall = fractions.Fraction(int(found), sum(ranked).item())
        points.append((recall, fractions.Fraction(int(found), rank)))
    total = fractions.Fraction(0)
    for tenth in range(11):
        reached = [p for r, p in points if r >= fractions.Fraction(tenth, 10)]
        total += max(reached, default=fractions.Fraction(0)) / 11
    return float(total)


@pytest.mark.parametrize("positives", [1, 3, 10, 30])
def test_average_precision_equals_its_definition(positives):
    rng = np.random.default_rng(positives)
    labels = rng.permutation(np.repeat([1, 0, -1], [positives, 50, 20]))
    # Few values, so that many tie.
    scores = rng.integers(0, 12, len(labels)) + 2.0 * labels
    expected = plain_average_precision(scores, labels)
    assert metrics.average_precision(scores, labels) == pytest.approx(expected)
    assert 0 < expected < 1


def test_what_does_not_count_changes_nothing():
    scores = np.array([5.0, 4, 3, 2])
    with_unknown = metrics.average_precision(scores, np.array([-1, 1, -1, 0]))
    assert with_unknown == 1
    assert metrics.average_precision(scores, np.array([0, 1, 0, 0])) == 0.5


def test_mean_average_precision_is_over_classes_with_positives():
    scores = np.array([[3.0, 1, 0], [2, 2, 0], [1, 3, 0]])
    labels = np.array([[1, 1, 0], [0, 0, -1], [0, 0, 0]])
    assert metrics.mean_average_precision(scores, labels) == pytest.approx(
        (1 + 1 / 3) / 2
    )
    with pytest.raises(ValueError, match="needs a positive"):
        metrics.mean_average_precision(scores, np.zeros((3, 3), int))
    with pytest.raises(ValueError, match="needs a positive"):
        metrics.average_precision(scores[:, 0], np.zeros(3, int))
