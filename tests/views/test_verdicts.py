from pathlib import Path

import numpy as np

from tests.views.ticks import names_at
from workbench.analysis.detection.ap_tests import AP, CHURN, judge
from workbench.analysis.results.of_runs import verdict_table
from workbench.store.run import Run
from workbench.views.catalog import Entry
from workbench.views.verdicts import arms_against_baseline, verdicts_figure


def entry(arm: str, seed: int, schedule: str = "equal steps", created: str = "1", state: str = "done") -> Entry:
    return Entry(Run(Path(f"{arm}-{seed}-{schedule}-{created}")), "r", arm, seed, schedule, state, created=created)


def test_all_finished_seeds_of_an_arm_are_pooled_the_newest_of_each_against_the_undistilled_ones():
    runs = [entry("undistilled", 0), entry("undistilled", 1), entry("d", 0), entry("d", 0, created="2"), entry("d", 1),
            entry("d", 2, state="running"), entry("d", 0, "equal compute")]  # fmt: skip
    found = arms_against_baseline([runs[2], runs[6], runs[0]], runs)
    assert [name for name, _, _ in found] == ["r · d · equal steps", "r · d · equal compute"]
    assert [[run.run.name for run in side] for side in found[0][1:]] == [
        ["undistilled-0-equal steps-1", "undistilled-1-equal steps-1"], ["d-0-equal steps-2", "d-1-equal steps-1"],
    ]  # fmt: skip
    assert [run.seed for run in found[1][1]] == [0, 1]
    assert arms_against_baseline([runs[2]], runs[2:]) == []


def test_a_verdict_is_drawn_in_the_colour_of_its_word_with_its_interval():
    better = judge(AP, {0: np.full(9, 0.25)}, {0: np.full(9, 0.5)}, 7)
    same = judge(CHURN, {0: np.full(9, 0.5)}, {0: np.array([0.5, *np.linspace(0.25, 0.75, 8)])}, 7)
    table = verdict_table("<b>", [better, same])
    assert table["verdict"].tolist() == ["better", "not distinguishable"]
    assert np.allclose(table.loc[0, ["baseline", "other", "difference", "low", "high"]].astype(float), [25, 50, 25, 25, 25])
    figure = verdicts_figure(table)
    first, second = figure.data
    assert (first.name, second.name) == ("better", "not distinguishable")
    assert first.marker.color != second.marker.color
    assert names_at(figure.layout.yaxis, first.y) == ["&lt;b&gt;"]
    assert figure.layout.xaxis.range[0] < 0 < 25 < figure.layout.xaxis.range[1]
    assert np.isclose(second.x[0] - second.error_x.arrayminus[0], table["low"][1])
