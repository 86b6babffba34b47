"""What is predicted of a formula is what a Gaussian process over its choices says, worked out in other ways."""

from itertools import combinations

import numpy as np
import pytest

from workbench.search.surrogate import ALIKE, OWN, covariance, expected_gain

SIZES = (4, 3, 5)


def drawn(count: int, seed: int) -> np.ndarray:
    """Returns codes of different formulas."""
    every = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), -1).reshape(-1, len(SIZES))
    return np.random.default_rng(seed).permutation(every)[:count]


def test_the_covariance_is_that_of_a_sum_of_effects_of_every_combination_of_choices():
    first, second = drawn(12, 0), drawn(9, 1)
    expected = np.zeros((12, 9))
    for count in range(len(SIZES) + 1):
        for places in combinations(range(len(SIZES)), count):
            variance = (1 - OWN) * (1 - ALIKE) ** count * ALIKE ** (len(SIZES) - count)
            for row, one in enumerate(first):
                for column, other in enumerate(second):
                    expected[row, column] += variance * all(one[place] == other[place] for place in places)
    assert covariance(first, second) == pytest.approx(expected)


def test_the_expected_gain_is_the_mean_gain_of_many_draws_from_the_process():
    codes = drawn(20, 2)
    trained, asked = codes[:14], codes[14:]
    values = np.random.default_rng(3).uniform(30, 40, 14)
    # condition the joint normal distribution of all twenty by its precision, not by triangles
    whole = covariance(codes, codes) + OWN * np.eye(20)
    precision = np.linalg.inv(whole)
    spread = np.linalg.inv(precision[14:, 14:])
    scaled = (values - values.mean()) / values.std()
    mean = -spread @ precision[14:, :14] @ scaled
    draws = np.random.default_rng(4).multivariate_normal(mean, spread, 200_000)
    gains = np.maximum(draws - scaled.max(), 0)
    found = expected_gain(trained, values, asked)
    assert (np.abs(found - gains.mean(0)) < 5 * gains.std(0) / np.sqrt(len(draws))).all() and found.max() > 0.01


def test_where_all_values_are_equal_nothing_fails_and_the_least_known_formula_gains_most():
    codes = np.array([[0, 0, 0], [0, 0, 1]])
    near, far = expected_gain(codes, np.array([5.0, 5.0]), np.array([[0, 0, 2], [3, 2, 4]]))
    assert 0 < near < far
