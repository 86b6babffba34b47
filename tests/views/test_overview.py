import numpy as np
import pandas as pd

from tests.views.ticks import names_at
from workbench.views.overview import layers_figure, progress_figure, results_figure
from workbench.views.style import GREY, run_style

HOSTILE = "<img src=x onerror=alert(1)>"
RUNS = ["base", HOSTILE]


def points() -> pd.DataFrame:
    return pd.DataFrame([
        {"run": run, "step": step, "ap": ap, "churn": churn, "instability": churn and 4 * churn, "n": 12,
         "found_by_churn": churn and 2 * churn, "found_by_n": 9}
        for run, scale in zip(RUNS, (1, 2), strict=True)
        for step, ap, churn in ((200, 0.1 * scale, None), (100, 0.05 * scale, 0.25))
    ])  # fmt: skip


def test_ap_is_shown_in_per_cent_in_order_of_steps():
    figure = progress_figure(points(), RUNS)
    ap = figure.data[0]
    assert list(ap.x) == [100, 200]
    assert np.allclose(ap.y, [5, 10])
    assert list(figure.data[1].x) == [100]  # no churn where there is no earlier evaluation
    assert list(figure.data[1].y) == [25]
    assert list(figure.data[2].y) == [50] and list(figure.data[2].customdata) == [9]
    assert list(figure.data[3].y) == [1.0]


def test_a_run_has_one_colour_in_every_panel_and_one_entry_in_the_legend():
    figure = progress_figure(points(), RUNS)
    for position in range(2):
        own = [trace for trace in figure.data if trace.legendgroup == str(position)]
        assert {trace.line.color for trace in own} == {run_style(position)[0]}
        assert [trace.showlegend for trace in own] == [True, False, False, False]


def test_steps_of_all_panels_move_together_and_axes_name_their_units():
    figure = progress_figure(points(), RUNS)
    assert {figure.layout[f"xaxis{i}"].matches for i in ("", 2, 3, 4)} == {"x"}
    units = ["AP (%)", "churn (% of targets)", "found-by churn (% of targets)", "queries per image"]
    assert [figure.layout[f"yaxis{i}"].title.text for i in ("", 2, 3, 4)] == units


def test_a_number_that_no_run_defines_is_replaced_by_its_reason_and_one_that_some_run_defines_is_drawn():
    several = points().assign(churn=None, instability=None, not_defined="not defined: many-to-one (<b>why</b>)")
    figure = progress_figure(several, RUNS)
    notes = [note.text.replace("<br>", " ") for note in figure.layout.annotations if "many-to-one" in note.text]
    assert notes == ["not defined: many-to-one (&lt;b&gt;why&lt;/b&gt;)"] * 2
    mixed = pd.concat([several[several["run"] == RUNS[0]], points()[points()["run"] == RUNS[1]]])
    assert not any("many-to-one" in note.text for note in progress_figure(mixed, RUNS).layout.annotations)


def test_names_of_runs_never_reach_plotly_as_markup():
    table = pd.DataFrame({"run": RUNS, "recipe": RUNS, "arm": RUNS, "seed": 0, "schedule": "equal steps"})
    table = table.assign(split="test", ap=0.5, teacher_ap=None)
    layers = pd.DataFrame([{"run": r, "layer": 1, "churn": 0.5, "n": 3, "model": "student"} for r in RUNS])
    for figure in (progress_figure(points(), RUNS), results_figure(table, RUNS), layers_figure(layers, RUNS)):
        assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_equal_steps_and_equal_compute_stand_apart_with_their_intervals():
    rows = [("base", "undistilled", 0, "equal steps", 0.4), (HOSTILE, "distilled", 0, "equal compute", 0.5)]
    table = pd.DataFrame(rows, columns=["run", "arm", "seed", "schedule", "ap"]).assign(recipe="shapes", split="test", teacher_ap=0.6)
    figure = results_figure(table.assign(ap_low=[0.3, 0.45], ap_high=[0.45, 0.6]), RUNS)
    assert [trace.name for trace in figure.data] == ["equal steps", "equal compute"]
    assert [trace.xaxis for trace in figure.data] == ["x", "x2"]
    assert list(figure.data[1].x) == [50.0]
    assert names_at(figure.layout.yaxis2, figure.data[1].y) == ["distilled"]
    assert np.allclose(figure.data[0].error_x.array, 5)
    assert np.allclose(figure.data[0].error_x.arrayminus, 10)
    assert figure.layout.xaxis.title.text == "AP (%), test split"
    assert [line.x0 for line in figure.layout.shapes] == [60.0, 60.0]  # the teacher, once in each half
    assert figure.data[0].marker.color != figure.data[1].marker.color
    alone = results_figure(table)  # without other figures beside it a colour would say nothing
    assert alone.data[0].marker.color == alone.data[1].marker.color


def test_layers_are_named_by_the_two_they_lie_between():
    layers = pd.DataFrame([{"run": "base", "model": "student", "layer": layer, "churn": 0.1 * layer, "n": 9} for layer in (1, 2)])
    figure = layers_figure(layers, ["base"])
    assert list(figure.layout.xaxis.ticktext) == ["0 to 1", "1 to 2"]
    assert np.allclose(figure.data[0].y, [10, 20])


def test_runs_of_one_teacher_show_it_once_in_grey():
    rows = [(run, "student", 1) for run in RUNS] + [("big", "teacher", 1), ("big", "teacher", 2)] * 2
    figure = layers_figure(pd.DataFrame(rows, columns=["run", "model", "layer"]).assign(churn=0.5, n=9), RUNS)
    teacher = figure.data[-1]
    assert len(figure.data) == 3
    assert (teacher.name, teacher.line.color, list(teacher.x)) == ("teacher big", GREY, [1, 2])
