"""Training curves of several runs: every value is compared with the lines that were logged."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.store.run import Run, append_line
from workbench.views.training import training_lines
from workbench.views.training_compared import PANELS, curve_meanings, curves, curves_figure


@pytest.fixture
def lines(tmp_path: Path) -> dict[str, pd.DataFrame]:
    found = {}
    for name, terms in (("taught", ("m.a", "m.b")), ("alone", ())):
        run = Run.create(name, {"state": "done"}, tmp_path)
        for step in range(10, 210, 10):
            raw = {f"raw/{term}": math.sin(step) + 2 + number for number, term in enumerate(terms)}
            weighted = {key.replace("raw/", "weighted/"): 3 * value for key, value in raw.items()}
            shares = {f"share/{term}": step / 1000 for term in terms} if step % 100 == 0 else {}
            line = {"step": step, "loss": 100 / step + sum(weighted.values()), "learning_rate": 1e-4, "gradient_norm": 1.0 + step}
            append_line(run.metrics_path, {**line, "detection/class": 5.0, **raw, **weighted, **shares})
            append_line(run.timings_path, {"step": step, "cpu": step / 10, "wall": step / 20})
        found[name] = training_lines(run)
    return found


def values(points: pd.DataFrame, run: str, panel: str, term: str = "", column: str = "value") -> list[float]:
    own = points[(points["run"] == run) & (points["panel"] == panel) & (points["term"] == term)]
    return own[column].tolist()


def test_the_detection_loss_of_a_distilled_run_is_its_loss_less_its_terms_and_of_an_undistilled_one_all_of_it(lines):
    points = curves(lines)
    expected = [100 / step for step in range(10, 210, 10)]
    assert values(points, "taught", "Detection loss") == pytest.approx(expected)
    assert values(points, "alone", "Detection loss") == pytest.approx(expected)
    assert values(points, "taught", "Loss")[0] == pytest.approx(10 + 3 * (2 * math.sin(10) + 5))


def test_terms_are_shown_with_and_without_their_weights_and_shares_in_percent_where_they_were_logged(lines):
    points = curves(lines)
    own = [math.sin(step) + 3 for step in range(10, 210, 10)]
    assert values(points, "taught", "Distillation terms, weighted", "m.b") == pytest.approx([3 * value for value in own])
    assert values(points, "taught", "Distillation terms, raw", "m.b") == pytest.approx(own)
    assert values(points, "taught", "Gradient share", "m.a") == pytest.approx([10, 20])
    assert set(points.loc[points["run"] == "alone", "term"]) == {""}
    assert values(points, "alone", "Speed") == pytest.approx([20] * 19)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_a_smoothed_value_is_the_mean_of_the_logged_values_around_it(lines, window: int):
    points = curves(lines, window=window)
    logged = lines["taught"]["loss"].tolist()
    before, after = window // 2, (window - 1) // 2
    expected = [float(np.mean(logged[max(at - before, 0) : at + after + 1])) for at in range(len(logged))]
    assert values(points, "taught", "Loss", column="smoothed") == pytest.approx(expected)
    assert values(points, "taught", "Loss") == logged


def test_all_panels_share_one_axis_of_steps_and_one_hover(lines):
    points = curves(lines, window=5)
    figure = curves_figure(points, ["taught", "alone"])
    assert {trace.xaxis for trace in figure.data} == {"x"}
    assert figure.layout.hovermode == "x unified" and figure.layout.hoversubplots == "axis"
    shown = [trace for trace in figure.data if trace.hoverinfo != "skip"]
    assert [trace.name for trace in shown if trace.showlegend] == ["taught", "alone"]
    assert len(shown) == len(points.groupby(["run", "panel", "term"]))
    for trace in shown:
        axis = figure.layout[f"yaxis{(trace.yaxis or 'y')[1:]}"]
        drawn = np.log10(np.asarray(trace.y, float)) if axis.type == "log" else np.asarray(trace.y, float)
        assert axis.range[0] <= drawn.min() <= drawn.max() <= axis.range[1]


def test_names_of_runs_and_terms_are_drawn_as_text(lines):
    points = curves({"<b>x</b>": lines["taught"].rename(columns={"weighted/m.a": "weighted/<i>"})})
    figure = curves_figure(points, ["<b>x</b>"])
    assert all("<b>" not in f"{trace.name}{trace.hovertemplate}" and "<i>" not in trace.hovertemplate for trace in figure.data)


def test_the_meanings_are_those_of_the_panels_that_are_drawn(lines):
    text = curve_meanings(curves({"alone": lines["alone"]}))
    assert "Lines of terms: m.a solid, m.b dashed." in curve_meanings(curves(lines))
    assert "Lines of" not in text and "Detection loss: all terms" in text and "Gradient share" not in text
    assert all(panel.meaning for panel in PANELS)


def test_runs_without_a_log_make_an_empty_figure():
    assert curves({}).empty and len(curves_figure(curves({}), []).data) == 0
