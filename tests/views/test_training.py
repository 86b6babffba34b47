import json
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.files import write_json
from workbench.store.run import Run
from workbench.views.style import GREY
from workbench.views.training import panel_meanings, thinned, training_figure, training_lines

HOSTILE = "<img src=x onerror=alert(1)>"


def logged(path: Path, metrics: list[dict], timings: list[dict]) -> Run:
    run = Run(path)
    write_json(run.info_path, {"format_version": 1})
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in metrics))
    run.timings_path.write_text("".join(json.dumps(line) + "\n" for line in timings))
    return run


def titles(figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def test_a_run_without_distillation_has_no_empty_panels():
    metrics = pd.DataFrame({"step": [10, 20], "loss": [2.0, 1.0], "learning_rate": [1e-3, 1e-3], "detection/class": [1.0, 0.5]})
    assert titles(training_figure(metrics)) == ["Loss", "Detection terms, raw", "Learning rate"]
    assert "Cosine" not in panel_meanings(metrics)


def test_a_term_keeps_its_colour_and_gaps_are_left_out():
    terms = {"raw/m.features": [2.0, 1.0], "weighted/m.features": [4.0, 2.0], "share/m.features": [np.nan, 0.5]}
    figure = training_figure(pd.DataFrame({"step": [10, 20], **terms}))
    assert {trace.line.color for trace in figure.data} == {figure.data[0].line.color}
    assert list(figure.data[2].x) == [20]
    assert list(figure.data[2].y) == [50.0]
    assert [trace.showlegend for trace in figure.data] == [True, False, False]


def test_a_term_that_is_zero_or_negative_is_not_drawn_on_a_logarithmic_axis():
    figure = training_figure(pd.DataFrame({"step": [10, 20], "raw/a.b": [1.0, 0.0], "weighted/a.b": [1.0, 2.0]}))
    assert [figure.layout.yaxis.type, figure.layout.yaxis2.type] == ["linear", "log"]


def test_the_weighted_detection_loss_is_the_loss_without_its_distillation_terms(tmp_path: Path):
    run = logged(tmp_path, [{"step": 10, "loss": 10.0, "weighted/a.b": 2.0, "weighted/a.c": 3.0}], [])
    lines = training_lines(run)
    assert lines["weighted/detection"].tolist() == [5.0]
    assert training_figure(lines).data[-1].line.color == GREY
    assert "weighted/detection" not in training_lines(logged(tmp_path, [{"step": 10, "loss": 10.0}], []))


def test_speed_is_steps_over_the_seconds_since_the_line_before(tmp_path: Path):
    timings = [{"step": 10, "wall": 5.0, "cpu": 4.0}, {"step": 30, "wall": 15.0, "cpu": 8.0}, {"step": 40, "wall": 15.0, "cpu": 8.0}]
    lines = training_lines(logged(tmp_path, [{"step": step, "loss": 1.0} for step in (10, 30, 40)], timings))
    assert lines["steps_per_second wall"].tolist()[1] == 2.0
    assert lines["steps_per_second cpu"].tolist()[1] == 5.0
    assert lines["steps_per_second wall"].isna().tolist() == [True, False, True]  # no time passed: no speed
    assert titles(training_figure(lines)) == ["Loss", "Speed"]


def test_a_run_that_has_logged_nothing_has_no_lines(tmp_path: Path):
    assert training_lines(logged(tmp_path, [], [])).empty


def test_a_long_run_is_drawn_by_means_and_a_page_holds_at_most_twenty_thousand_marks():
    lines = pd.DataFrame({"step": np.arange(100_000) * 10.0, **{f"raw/{i}": np.arange(100_000.0) for i in range(30)}})
    thin, together = thinned(lines)
    assert sum(len(trace.x) for trace in training_figure(thin).data) <= 20_000
    assert thin["raw/0"][0] == np.arange(together).mean()
    assert thinned(lines.head(20))[1] == 1


def test_names_of_terms_never_reach_plotly_as_markup():
    figure = training_figure(pd.DataFrame({"step": [1, 2], f"raw/{HOSTILE}": [1.0, 2.0]}))
    assert "<img" not in figure.to_json().replace("\\u003c", "<")
