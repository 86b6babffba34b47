"""A diagnosis as tables."""

import html
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench.analysis.diagnosis.diagnose import CAUSES
from workbench.analysis.diagnosis.findings import Check, Diagnosis, Evidence, Finding, Measurement
from workbench.views.causes import FIGURES, checks_table, evidence_table, measures_figure, measures_table, said
from workbench.views.style import plain

LARGE = Measurement("churn late in training", 0.4, 0.35, 0.45, 0.1, "above")
STRADDLING = Measurement("cosine of kd with the detection loss", -0.02, -0.05, 0.03, -0.01, "below")
EXACT = Measurement("AP of the teacher", 0.7, None, None, 0.4, "below")
MEASURED = Diagnosis("run", None, (), (
    Check("unsettled matching", "found", "", (LARGE,)), Check("opposing term", "clear", "", (STRADDLING,)),
    Check("normalisation", "clear", "", (EXACT,)), Check("resolution", "not judged", "no teacher"),
))  # fmt: skip


def test_every_cause_and_every_number_behind_a_finding_has_a_row():
    evidence = (Evidence("share of the gradient", 0.2, 7, "steps", 0.1, 0.3), Evidence("AP", 0.5, 9, "images", None, None))
    finding = Finding("weak term", "warning", "It is weak.", evidence, "Raise it.")
    checks = (Check("weak term", "found"), Check("class map", "clear"), Check("resolution", "not judged", "no teacher"))
    table = evidence_table(finding)
    rows = table[["evidence", "value", "n", "of"]].to_numpy().tolist()
    assert rows == [
        ["share of the gradient", 0.2, 7, "steps"],
        ["AP", 0.5, 9, "images"],
    ]
    assert table["low"].isna().tolist() == [False, True]
    shown = checks_table(Diagnosis("run", None, (finding,), checks))
    assert shown["outcome"].tolist() == ["found", "not there", "not judged"]
    assert shown["why not"].tolist() == ["", "", "no teacher"] and all(shown["what it means"])


def test_every_measured_number_has_a_row_with_its_threshold_and_whether_all_of_its_interval_lies_beyond():
    table = measures_table(MEASURED)
    assert table["cause"].tolist() == ["unsettled matching", "opposing term", "normalisation"]
    assert table["threshold"].tolist() == [0.1, -0.01, 0.4]
    assert table["is_beyond"].tolist() == [True, False, False]
    assert Measurement("x", -0.5, -0.6, -0.4, -0.01, "below").is_beyond and not Measurement("x", 0.1, None, None, 0.1, "above").is_beyond


def test_a_bar_lies_right_of_the_line_where_the_cause_is_and_carries_its_numbers():
    figure = measures_figure(MEASURED)
    marks = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert list(marks["beyond its threshold"].y) == [0] and list(marks["not beyond it"].y) == [1, 2]
    assert marks["beyond its threshold"].x[0] == pytest.approx((0.4 - 0.1) / (0.45 - 0.1))
    # a cause below its threshold is mirrored: -0.02 lies 0.01 on the side of the cause, of a row that reaches 0.04 to either side
    assert list(marks["not beyond it"].x) == pytest.approx([0.01 / 0.04, -1.0])
    bars = [trace for trace in figure.data if trace.mode == "lines"]
    assert list(bars[0].x[:2]) == pytest.approx([0.25 / 0.35, 1.0])
    assert list(bars[1].x[:2]) == pytest.approx([-1.0, 0.04 / 0.04])
    assert [note.text for note in figure.layout.annotations] == [said(LARGE), said(STRADDLING), said(EXACT)]
    assert said(LARGE) == "0.4 [0.35, 0.45], cause above 0.1" and said(EXACT) == "0.7, cause below 0.4"
    assert all(axis.range is not None for axis in (*figure.select_xaxes(), *figure.select_yaxes()))


def test_an_ap_has_one_decimal_as_on_every_other_page():
    assert said(Measurement("AP of the teacher", 68.0, None, None, 40.0, "below", points=True)) == "68.0, cause below 40.0"
    difference = Measurement("AP of the teacher minus the student's", -8.04, -9.96, -6.0, 0.0, "below", points=True)
    assert said(difference) == "-8.0 [-10.0, -6.0], cause below 0.0"


def test_a_long_label_is_broken_into_lines_and_not_cut_and_the_margins_hold_the_longest():
    what = "gradient of all terms of <every> method together as a share of the detection loss's, median, late in training"
    checks = (Check("drowning term", "clear", "", (Measurement(what, 0.4, 0.35, 0.45, 0.1, "above"),)),)
    long, short = measures_figure(Diagnosis("run", None, (), checks)), measures_figure(MEASURED)
    (label,) = long.layout.yaxis.ticktext
    lines = label.split("<br>")
    assert " ".join(lines) == plain(f"drowning term: {what}") and len(lines) > 1
    for figure in (long, short):
        letters = max(len(html.unescape(line)) for name in figure.layout.yaxis.ticktext for line in name.split("<br>"))
        right = max(len(note.text) for note in figure.layout.annotations)
        assert figure.layout.margin.l >= 6.2 * letters and figure.layout.margin.r >= 6.2 * right
        rows = (figure.layout.height - figure.layout.margin.t - figure.layout.margin.b) / len(figure.layout.yaxis.ticktext)
        assert rows >= 14 * max(name.count("<br>") + 1 for name in figure.layout.yaxis.ticktext)
        assert figure.layout.margin.t <= 36  # one line of the legend and no air above it


def test_every_cause_links_to_a_page_that_there_is():
    assert list(FIGURES) == list(CAUSES)
    pages = set(re.findall(r"url_path=\"(\w+)\"", (ROOT / "app" / "Home.py").read_text())) | {
        Path(name).stem for name in re.findall(r"screens/(\w+)\.py", (ROOT / "app" / "Home.py").read_text())
    }
    assert {shown.page for shown in FIGURES.values()} <= pages
    table = checks_table(MEASURED, run="a & b", split="val")
    assert table["figure"].tolist()[0] == "stability?run=a+%26+b&split=val"
