"""The table of schedules says what its runs say, and where two curves cross is found as by drawing them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.converged import ARMS, LENGTHS, crossing, figure, length_table, recipe_hashes, verdict
from workbench.views.static_figure import static_svg

RUNS = pd.DataFrame([
    {"arm": arm, "seed": seed, "steps": steps, "ap": (base + seed) / 100, "compute_seconds": cost * steps + seed}
    for steps, bases in {600: (5.0, 30.0, 25.0), 1200: (20.0, 40.0, 39.0), 2400: (50.0, 45.0, 44.0)}.items()
    for arm, base, cost in zip(ARMS, bases, (0.05, 0.1, 0.1), strict=True)
    for seed in range(2)
])  # fmt: skip


def test_a_line_has_mean_and_range_of_each_arm_and_the_gain_of_each_seed():
    lines = length_table(RUNS).splitlines()
    assert len(lines) == 2 + 3
    assert lines[3] == (
        "| 1200 | 2 | 20.5 (20.0 to 21.0) | 40.5 (40.0 to 41.0) | 39.5 (39.0 to 40.0) | +20.0 (+20.0, +20.0) | +19.0 (+19.0, +19.0) "
        "| 60 | 120 | 120 |"
    )


def test_a_gain_takes_the_seeds_that_both_arms_have():
    without = RUNS[~((RUNS["arm"] == ARMS[0]) & (RUNS["seed"] == 1) & (RUNS["steps"] == 600))]
    assert "| 600 | 2 | 5.0 (5.0 to 5.0) | 30.5 (30.0 to 31.0) |" in length_table(without)
    assert "| +25.0 (+25.0) |" in length_table(without)


def test_the_verdict_names_the_compute_at_which_the_curves_cross():
    # distilled: 30.5 AP at 60.5 s, 40.5 at 120.5; undistilled: 20.5 at 60.5, 50.5 at 120.5: ten points apart at each end, so half way
    seconds, ap = np.sqrt(60.5 * 120.5), 35.5
    assert verdict(RUNS) == (f"At equal compute the two curves of mean AP cross at {seconds:.0f} CPU seconds, where both have {ap} AP.")
    ahead = RUNS.assign(ap=RUNS["ap"] + np.where(RUNS["arm"] == ARMS[0], 0.0, 0.5))
    assert "is ahead of the undistilled one throughout, from 60 to 120 CPU seconds" in verdict(ahead)


@given(st.floats(1.1, 9.9), st.floats(-0.3, 0.3).filter(lambda slope: abs(slope) > 1e-3))
def test_two_lines_cross_where_they_were_drawn_to(place: float, slope: float):
    ends = (1.0, 10.0)
    flat = [(x, 0.5) for x in ends]
    steep = [(x, 0.5 + slope * np.log(x / place)) for x in ends]
    found = crossing(steep, flat)
    assert found is not None and found == (pytest.approx(place, rel=1e-6), pytest.approx(0.5))


def test_curves_that_only_touch_at_their_beginning_or_lie_apart_do_not_cross():
    assert crossing([(1.0, 0.5), (10.0, 0.6)], [(1.0, 0.5), (10.0, 0.5)]) is None
    assert crossing([(1.0, 0.2), (10.0, 0.3)], [(2.0, 0.4), (20.0, 0.5)]) is None


def test_every_length_is_a_recipe_of_its_own():
    assert len(set(recipe_hashes().values())) == len(ARMS) * len(LENGTHS)


def test_the_figure_is_drawn_without_scripts_and_names_every_arm():
    drawn = static_svg(figure(RUNS))
    assert all(arm in drawn for arm in ARMS) and "CPU seconds" in drawn
