"""Intervals that diagnosis judges by."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from workbench.analysis.diagnosis.statistics import median_interval, ratio_difference, share_interval


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (30, 10)])
def test_the_interval_of_a_median_is_that_of_the_tables_of_the_sign_test(n: int, rank: int):
    """Ranks as in tables of distribution-free intervals: the rank-th smallest and the rank-th largest value."""
    found = median_interval(list(range(1, n + 1))[::-1])
    assert found is not None and (found.low, found.high, found.value, found.n) == (rank, n + 1 - rank, (n + 1) / 2, n)


def test_five_values_bound_no_median():
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None and median_interval([]) is None


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (7, 20), (199, 200)])
def test_the_interval_of_a_share_is_scipys_wilson_interval(hits: int, n: int):
    by_scipy = binomtest(hits, n).proportion_ci(method="wilson")
    found = share_interval(hits, n)
    assert (found.low, found.high) == (pytest.approx(by_scipy.low, abs=1e-6), pytest.approx(by_scipy.high, abs=1e-6))


def test_the_interval_of_a_ratio_has_the_width_that_normal_theory_gives():
    rng = np.random.default_rng(0)
    total = rng.integers(1, 10, 400).astype(float)
    hits = rng.binomial(total.astype(int), 0.3).astype(float)
    found = ratio_difference((hits, total))
    ratio = hits.sum() / total.sum()
    error = math.sqrt(((hits - ratio * total) ** 2).sum()) / total.sum()
    assert found.value == pytest.approx(ratio) and found.n == 400
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_difference_of_the_same_ratio_is_nothing_with_certainty():
    parts = (np.array([1.0, 2.0, 0.0]), np.array([2.0, 2.0, 3.0]))
    found = ratio_difference(parts, parts)
    assert (found.value, found.low, found.high) == (0, 0, 0)
