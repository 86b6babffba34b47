"""Alignment of features agrees with its definition on Gram matrices, and with what it is meant to be blind to."""

import numpy as np
import pytest

from workbench.analysis.alignment import linear_cka


def features(seed: int, cells: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(cells, width)) * np.arange(1, width + 1)


def by_gram_matrices(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = XX', L = YY' centred on both sides."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, other = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return float(np.trace(k @ other) / np.sqrt(np.trace(k @ k) * np.trace(other @ other)))


IMAGES = np.repeat(np.arange(6), 10)


def test_the_value_is_that_of_centred_gram_matrices_and_the_interval_that_of_a_jackknife_by_hand():
    x, y = features(0, 60, 4) + 3, features(1, 60, 7)
    y[:, :2] += x[:, :2]
    found = linear_cka(x, y, IMAGES)
    assert found.value == pytest.approx(by_gram_matrices(x, y))
    without = np.array([by_gram_matrices(x[IMAGES != k], y[IMAGES != k]) for k in range(6)])
    reach = 1.96 * np.sqrt(5 / 6 * ((without - without.mean()) ** 2).sum())
    assert (found.low, found.high) == (pytest.approx(found.value - reach), pytest.approx(found.value + reach))
    assert (found.images, found.cells) == (6, 60) and found.without == pytest.approx(tuple(without))


def test_features_turned_and_scaled_are_aligned_wholly_and_unrelated_ones_hardly():
    x = features(2, 600, 5)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    image = np.repeat(np.arange(6), 100)
    assert linear_cka(x, 3 * x @ turn + 1, image).value == pytest.approx(1)
    assert linear_cka(x, features(4, 600, 5), image).value < 0.05


def test_constant_features_align_with_nothing():
    assert linear_cka(np.ones((60, 3)), features(5, 60, 3), IMAGES).value == 0
