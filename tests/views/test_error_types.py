import numpy as np
import pandas as pd

from tests.views.test_image import CLASSES, PIXELS, record
from tests.views.ticks import names_at
from workbench.views.error_types import (
    calibration_figure,
    confusion_difference_figure,
    confusion_figure,
    costliest,
    costs_figure,
    difference_figure,
    pairs_figure,
    wrong_figure,
)

HOSTILE = "<img src=x onerror=alert(1)>"
COSTS = pd.DataFrame({"error": ["both", "false_positive"], "special": [False, True], "count": [3, 4], "images": [2, 2],
                      "cost": [0.1, 0.2], "low": [0.05, 0.15], "high": [0.2, 0.3]})  # fmt: skip


def test_costs_are_points_of_ap_with_their_intervals():
    figure = costs_figure({HOSTILE: COSTS})
    bar = figure.data[0]
    assert names_at(figure.layout.xaxis, bar.x) == list(bar.hovertext) == ["both", "false positive"]
    assert figure.layout.yaxis.range[0] == 0 and figure.layout.yaxis.range[1] > 30
    assert np.allclose(bar.y, [10, 20])
    assert np.allclose(np.array(bar.y) + bar.error_y.array, [20, 30])
    assert np.allclose(np.array(bar.y) - bar.error_y.arrayminus, [5, 15])
    assert "<img" not in bar.name + bar.hovertemplate


def test_a_difference_has_the_colour_of_its_verdict():
    words = ["worse", "not distinguishable"]
    table = COSTS.assign(difference=[0.1, -0.1], low=[0.05, -0.3], high=[0.2, 0.1], verdict=words, sentence=HOSTILE)
    figure = difference_figure(table)
    drawn = {trace.name: names_at(figure.layout.yaxis, trace.y) for trace in figure.data}
    assert drawn == {"better": [], "worse": ["both"], "not distinguishable": ["false positive"]}
    assert figure.layout.xaxis.range[0] < -30 and figure.layout.xaxis.range[1] > 20
    assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_confusion_is_shown_as_shares_of_the_targets_of_a_class():
    counts = pd.DataFrame([[3, 1, 0], [0, 0, 0], [2, 0, 0]], index=[1, 2, -1], columns=[1, 2, -1])
    figure = confusion_figure(counts, {1: "cat", 2: HOSTILE})
    shares = np.array(figure.data[0].z, float)
    assert shares[0].tolist() == [75, 25, 0]
    assert np.isnan(shares[1]).all()
    assert figure.data[1].customdata.tolist() == [[1, 1], [-1, 1], [1, 2]]  # what a click carries, the fullest cell first
    assert (list(figure.data[1].x), list(figure.data[1].y)) == ([0, 0, 1], [0, 2, 0])
    assert list(figure.layout.xaxis.ticktext) == ["cat", "&lt;img src=x onerror=alert(1)&gt;", "background"]


def test_empty_bins_of_scores_are_left_out():
    table = pd.DataFrame({"n": [0, 5], "score": [np.nan, 0.9], "precision": [np.nan, 0.5], "low": [np.nan, 0.4], "high": [np.nan, 0.6]})
    assert list(calibration_figure({"a": table}).data[1].x) == [0.9]


def test_errors_and_missed_targets_are_drawn_over_the_image():
    box = {"x1": [1.0], "y1": [2.0], "x2": [3.0], "y2": [4.0]}
    wrong = pd.DataFrame({"category_id": [7], "score": [0.25], **box})
    for rows, text in ((wrong, "\u00a0&lt;b&gt; 0.25\u00a0"), (wrong.drop(columns="score"), "\u00a0&lt;b&gt;\u00a0")):
        figure = wrong_figure(PIXELS, record(), CLASSES, rows, {7: "<b>"})
        assert text in figure.data[-1].text


def test_differences_of_the_confusion_that_may_be_chance_stand_in_brackets():
    table = pd.DataFrame({"truth": [1, 2], "predicted": [2, -1], "baseline": [5, 5], "other": [9, 3], "difference": [4, -2], "low": [1, -5],
                          "high": [6, 1]})  # fmt: skip
    figure = confusion_difference_figure(table, {1: "cat", 2: HOSTILE})
    written = {(y, x): text for x, y, text in zip(figure.data[1].x, figure.data[1].y, figure.data[1].text, strict=True)}
    assert written == {(0, 1): "+4", (1, 2): "(-2)"}
    assert figure.data[0].z[0][1] == 4 and np.isnan(np.array(figure.data[0].z, float)[0, 0])
    assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_the_costliest_error_is_the_one_that_is_not_a_sum_of_others():
    table = pd.DataFrame({"error": ["both", "missed", "duplicate", "false_positive"], "special": [False, False, False, True],
                          "count": [900, 2, 3, 905], "cost": [0.01, 0.05, np.nan, 0.2]})  # fmt: skip
    assert costliest(table) == "missed"
    assert costliest(table.assign(cost=np.nan)) == "both"


def test_a_pair_is_drawn_with_its_target_below_and_its_detection_above_and_background_has_no_box():
    pairs = pd.DataFrame({
        "truth": [3, 7, -1], "predicted": [7, -1, 3], "score": [0.9, np.nan, 0.4], "x1": [1.0, np.nan, 5.0], "y1": [1.0, np.nan, 5.0],
        "x2": [4.0, np.nan, 8.0], "y2": [4.0, np.nan, 8.0], "target_x1": [1.5, 2.0, np.nan], "target_y1": [1.0, 2.0, np.nan],
        "target_x2": [4.5, 6.0, np.nan], "target_y2": [4.0, 6.0, np.nan],
    })  # fmt: skip
    figure = pairs_figure(np.zeros((10, 10, 3), np.uint8), 1, pairs, {3: "car", 7: "<b>van"})
    texts = [[text.strip("\u00a0") for text in trace.text] for trace in figure.data if trace.mode == "text"]
    assert texts == [["car", "&lt;b&gt;van"], ["&lt;b&gt;van 0.90", "car 0.40"]]
    targets, detections = (next(trace for trace in figure.data if trace.name == name) for name in ("targets", "detections"))
    assert np.nanmin(targets.x) == 1.5 and np.nanmax(targets.x) == 6.0
    assert np.nanmin(detections.x) == 1.0 and np.nanmax(detections.x) == 8.0
