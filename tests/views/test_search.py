"""Figures of a search: what is drawn is what the tables hold."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.search.test_records import trial
from workbench.search import shown
from workbench.search.records import TrialRecord
from workbench.views import search as views
from workbench.views.style import plain

HOSTILE = "<img src=x onerror=alert(1)> %{x} $y$"
GENES = ("no", "satt", "no", "mask", "satt", "satt")


def ended(number: int, **changes) -> TrialRecord:
    """A trial without an AP at its end."""
    return replace(trial(number, 0.0, state="PRUNED"), value=None, **changes)


def records() -> list[TrialRecord]:
    """Six trained trials, one that a rung ended, one that a gate refused, and two repeats of each of two."""
    made = [
        trial(n, 0.1 + 0.02 * n, rung=0.05 + 0.01 * n, genes={"t3": gene}, formulas=({"t3": gene},), unpruned=True, candidate=f"c{n}")
        for n, gene in enumerate(GENES)
    ]
    made.append(ended(6, gate="rung", rungs={50: 0.04}, candidate="c6", reason="others were better"))
    made.append(ended(7, gate="R1", rungs={}, candidate=HOSTILE, reason=HOSTILE))
    for n, (of, value) in enumerate([(5, 0.18), (5, 0.2), (4, 0.16), (4, 0.14)]):
        made.append(trial(n, value, repeat_of=of, ended=10.0 + n, seed=1 + n % 2))
    return made


def drawn(**changes):
    own = records()
    return views.trials_figure(shown.trial_table(own), shown.rung_table(own), shown.leader_table(own), **changes)


def named(figure, name: str):
    return next(trace for trace in figure.data if trace.name and trace.name.startswith(name))


def test_every_trial_is_drawn_once_in_the_colour_of_what_became_of_it():
    figure = drawn()
    assert list(named(figure, "trained to its end").y) == pytest.approx([10, 12, 14, 16, 18, 20])
    assert list(named(figure, "trained to its end").x) == [1, 2, 3, 4, 5, 6]
    assert list(named(figure, "ended at a rung").y) == pytest.approx([4])
    assert list(named(figure, "repeat").y) == pytest.approx([18, 20, 16, 14])
    assert list(named(figure, "at a rung").y) == pytest.approx([5, 6, 7, 8, 9, 10])
    colours = {named(figure, name).marker.color for name in ("trained", "ended", "refused", "repeat")}
    assert len(colours) == 4
    assert [trace.name for trace in figure.data if trace.name and "(" in trace.name] == [
        "trained to its end (6)", "ended at a rung (1)", "refused by a gate (1)", "repeat with a fresh seed (4)",
    ]  # fmt: skip


def test_a_refused_trial_stands_below_every_ap_and_inside_the_axis():
    figure = drawn()
    low, high = figure.layout.yaxis.range
    place = named(figure, "refused").y[0]
    assert low < place < 0 < 20 < high


def test_the_line_is_the_best_mean_and_never_the_best_single_trial():
    line = named(drawn(), "best mean")
    assert list(line.y) == pytest.approx([18, 19, 19, 19])  # the first seed alone; then both; then the interval changes; the end
    assert list(line.x) == [9, 10, 12, 12]
    assert max(line.y) < 20
    assert "95 %" in line.hovertext[-1] and "n = 2 fresh seeds" in line.hovertext[-1]


def test_a_click_on_a_repeat_means_the_trial_that_it_repeats():
    figure = drawn()
    assert [row[0] for row in named(figure, "repeat").customdata] == [5, 5, 4, 4]
    assert [row[0] for row in named(figure, "trained").customdata] == list(range(6))


def test_the_chosen_trial_is_pointed_at():
    assert [list(trace.x) for trace in drawn(chosen=3).data if trace.marker.size == 16] == [[4]]
    assert not [trace for trace in drawn().data if trace.marker.size == 16]


def test_of_many_trials_all_are_drawn_and_the_best_and_an_even_sample_can_be_clicked():
    aps = np.random.default_rng(0).permutation(2000) / 1e4
    many = [trial(n, 0.1 + ap, rung=0.05, candidate="c") for n, ap in enumerate(aps.tolist())]
    many += [ended(n, gate="R1", rungs={}, candidate="c", reason="r", ended=float(n)) for n in range(2000, 2100)]
    table, rungs = shown.trial_table(many), shown.rung_table(many)
    figure = views.trials_figure(table, rungs, shown.leader_table(many), 7)
    assert views.without_rungs(table, rungs)
    cells, bottom, marks, crosses = figure.data
    assert (marks.mode, marks.name, crosses.name) == ("markers", "trained to its end (2000)", "refused by a gate (100)")
    assert len(marks.x) == len(marks.hovertext) == len(marks.customdata) and len(marks.x) + len(crosses.x) == 300
    assert sorted(marks.y)[-60:] == sorted(table["ap"].dropna())[-60:]
    places = np.sort([*marks.x, *crosses.x])
    assert places[0] <= 10 and places[-1] >= 2090 and np.diff(places).max() <= 20
    # every other trial is counted in the cell in which it lies, one without an AP at the bottom
    others = table[~table["place"].isin(places)]
    x, y = np.asarray(cells.x), np.asarray(cells.y)
    assert np.diff(x) == pytest.approx(np.diff(x)[0]) and np.diff(y) == pytest.approx(np.diff(y)[0])
    expected = np.zeros((len(y) - 1, len(x) - 1))
    for place, ap in others.dropna(subset=["ap"])[["place", "ap"]].to_numpy(float):
        expected[int((ap - y[0]) / (y[1] - y[0])), int((place - x[0]) / (x[1] - x[0]))] += 1
    assert np.nan_to_num(np.asarray(cells.z, float)).tolist() == expected.tolist()
    assert np.nansum(np.asarray(bottom.z, float)) == others["ap"].isna().sum() == 100 - len(crosses.x)
    assert np.asarray(bottom.y).mean() == pytest.approx(crosses.y[0]) and max(bottom.y) < table["ap"].min()
    assert not [trace for trace in drawn().data if trace.type == "heatmap"]


def test_names_and_reasons_are_drawn_as_text():
    assert HOSTILE not in str(drawn().to_dict())
    assert plain(HOSTILE) in named(drawn(), "refused").hovertext[0]
    table = pd.DataFrame({"gate": ["R1"], "trials": [3], "reason": [HOSTILE]})
    assert HOSTILE not in str(views.rejections_figure(table).to_dict())
    curves = pd.DataFrame({"sampler": [HOSTILE], "trial": [1], "ap": [1.0], "low": [0.5], "high": [1.5], "n": [3]})
    assert HOSTILE not in str(views.curves_figure(curves).to_dict())


def test_means_show_seeds_interval_and_the_trial_that_was_picked():
    table = shown.mean_table(records())
    figure = views.means_figure(table)
    assert list(named(figure, "mean").x) == pytest.approx([19, 15])
    assert sorted(named(figure, "fresh seed").x) == pytest.approx([14, 16, 18, 20])
    assert list(named(figure, "first trial").x) == pytest.approx([20, 18])
    assert list(named(figure, "mean").error_x.array) == pytest.approx(list(table["high"] - table["mean"]))
    assert list(figure.layout.yaxis.ticktext) == ["5 · c5", "4 · c4"]


def test_survivors_are_cells_with_the_most_common_choice_at_the_top():
    figure = views.survivors_figure(shown.survivor_table(records()))
    cells = figure.data[0]
    assert list(cells.x) == [5, 6]
    # the best fifth of five trials is the fifth; of six it is the two last: all satt
    assert np.asarray(cells.z).tolist() == [[100, 100], [0, 0], [0, 0]]
    assert np.asarray(cells.customdata)[:, 1].tolist() == pytest.approx([50, 100 / 3, 100 / 6])
    assert list(figure.layout.yaxis.ticktext) == ["satt  100 %", "no  0 %", "mask  0 %"]


def test_a_rung_says_its_correlation_its_trials_and_whether_it_ends_trials():
    points, rungs = shown.calibration_table(records())
    for limit, least, said in [(0.6, 6, "ends trials"), (0.6, 7, "ends none")]:
        figure = views.rungs_figure(points, rungs, limit, least)
        assert figure.layout.annotations[0].text == f"step 50: rank correlation 1.00, n = 6; {said}"
    assert list(figure.data[0].x) == pytest.approx([5, 6, 7, 8, 9, 10])
    assert list(figure.data[0].y) == pytest.approx([10, 12, 14, 16, 18, 20])


def test_rejections_are_bars_of_each_reason():
    figure = views.rejections_figure(shown.rejection_table(records()))
    assert {trace.name: list(trace.x) for trace in figure.data} == {"R1": [1], "rung": [1]}


@pytest.mark.parametrize("figure", [
    lambda: views.trials_figure(shown.trial_table([]), shown.rung_table([]), shown.leader_table([])),
    lambda: views.means_figure(shown.mean_table([])), lambda: views.survivors_figure(shown.survivor_table([])),
    lambda: views.rungs_figure(*shown.calibration_table([]), 0.6, 16),
    lambda: views.rejections_figure(shown.rejection_table([])),
])  # fmt: skip
def test_an_empty_study_is_a_sentence(figure):
    assert figure().data == () and figure().layout.annotations[0].text.endswith(".")


def test_curves_have_bands_over_seeds():
    curves = pd.DataFrame({"sampler": ["a", "a", "b", "b"], "trial": [1, 2, 1, 2], "ap": [1.0, 2, 1, 3], "low": [0.5, 1, 0.5, 2],
                           "high": [1.5, 3, 1.5, 4], "n": [5] * 4})  # fmt: skip
    figure = views.curves_figure(curves)
    assert [list(trace.y) for trace in figure.data] == [[0.5, 1, 3, 1.5], [1, 2], [0.5, 2, 4, 1.5], [1, 3]]
