"""Shares and means of groups over resampled images, against the same sums in loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.ratios import image_ratios, percentiles


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=15)
def test_each_ratio_is_a_ratio_of_sums_and_its_interval_that_of_resampled_images(seed: int):
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 30))
    image, group = rng.choice([3, 8, 9, 20], rows), rng.integers(0, 3, rows)
    above, below = rng.normal(size=rows), rng.integers(0, 3, rows)
    found = image_ratios(image, group, 4, above, below, samples=20, seed=seed)
    ids = sorted(set(image.tolist()))
    counts = [[1] * len(ids), *draws(len(ids), 20, seed).tolist()]
    for number in range(4):
        values = []
        for count in counts:
            sums = [math.fsum(count[ids.index(i)] * v[r] for r, i in enumerate(image) if group[r] == number) for v in (above, below)]
            values.append(sums[0] / sums[1] if sums[1] else math.nan)
        resampled = [value for value in values[1:] if not math.isnan(value)]
        wanted = np.percentile(resampled, [2.5, 97.5]) if resampled else (math.nan, math.nan)
        assert found.value[number] == pytest.approx(values[0], nan_ok=True)
        assert (found.low[number], found.high[number]) == pytest.approx(tuple(wanted), nan_ok=True)


def test_without_a_denominator_rows_are_averaged():
    means = image_ratios(np.array([1, 1, 2]), np.array([0, 0, 1]), 2, np.array([1.0, 3.0, 5.0]))
    assert means.value.tolist() == [2, 5] and (means.low[1], means.high[1]) == (5, 5)


def test_nothing_has_no_ratio_and_no_interval():
    nothing = np.zeros(0)
    found = image_ratios(nothing, nothing.astype(int), 2, nothing)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert all(np.isnan(end).all() for end in percentiles(np.zeros((3, 0))))
