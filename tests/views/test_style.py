import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import patient
from workbench.views.style import COLOURS, Chart, interval, plain, quiet, reach, run_style, with_lines, with_names

HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "**bold**", "$x^2$", "<b>b</b>", "&lt;", "%{x}", "a&#36;b"]


@given(st.text(max_size=30))
def test_nothing_that_plotly_interprets_is_left_in_plain_text(text: str):
    shown = plain(text)
    assert not set(shown) & set("<>$%\n")
    assert shown.count("&") == shown.count(";") - text.count(";")


def test_ordinary_names_are_left_as_they_are():
    assert plain("shapes-distilled-seed0, Fußgänger") == "shapes-distilled-seed0, Fußgänger"


def test_twenty_eight_runs_differ_in_colour_or_dash():
    assert len({run_style(i) for i in range(4 * len(COLOURS))}) == 4 * len(COLOURS)


@pytest.mark.browser
def test_hostile_names_are_drawn_by_plotly_as_their_characters(chromium: Any, tmp_path: Path):
    figure = go.Figure()
    for name in HOSTILE:
        figure.add_scatter(x=[1], y=[1], name=plain(name), showlegend=True)
    page_file = tmp_path / "figure.html"
    figure.write_html(page_file, include_plotlyjs=True)
    page = patient(chromium.new_page(viewport={"width": 900, "height": 700}))
    alerts: list[str] = []
    page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
    page.goto(page_file.as_uri())
    page.wait_for_selector(".legendtext")
    shown = page.eval_on_selector_all(".legendtext", "nodes => nodes.map(node => node.textContent)")
    images = page.eval_on_selector_all("img", "nodes => nodes.length")
    page.close()
    assert shown == HOSTILE, json.dumps(shown)
    assert images == 0
    assert alerts == []


def test_names_of_many_lines_have_room_above_the_plot_which_keeps_its_height():
    def figure(lines: int) -> go.Figure:
        return quiet(go.Figure([go.Scatter(y=[1], showlegend=True) for _ in range(lines)]), 280)

    def plot(drawn: go.Figure) -> int:
        return drawn.layout.height - drawn.layout.margin.t - drawn.layout.margin.b

    assert with_lines(figure(3)) == figure(3)
    many = with_lines(figure(15))
    assert plot(many) == plot(figure(15))
    assert many.layout.margin.t >= 15 * 18 and many.layout.legend.maxheight >= many.layout.margin.t


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_numbers_go_to_the_browser_as_lists_and_what_is_no_number_as_a_gap(numbers: list[float]):
    figure = Chart(go.Scatter(x=np.arange(len(numbers)), y=pd.Series(numbers, dtype=float), customdata=np.array(numbers).reshape(-1, 1)))
    trace = figure.to_dict()["data"][0]
    gaps = [number if np.isfinite(number) else None for number in numbers]
    assert (list(trace["x"]), list(trace["y"])) == (list(range(len(numbers))), gaps)
    assert trace["customdata"] == [[gap] for gap in gaps]
    assert [type(trace[name]) for name in ("x", "y", "customdata")] == [list] * 3
    json.dumps(trace, allow_nan=False)


def test_lists_are_found_wherever_they_stand_in_a_figure():
    ends = [np.array([3.0]), np.array([1.0]), np.array([4.0])]
    figure = Chart(go.Bar(y=[1.0], error_y=interval(ends), marker={"color": np.array([0.5])}))
    figure.add_layout_image(source="data:,", x=np.float64(2))
    drawn = figure.to_dict()
    assert drawn["data"][0]["error_y"]["array"] == [1] and drawn["data"][0]["error_y"]["arrayminus"] == [2]
    assert drawn["data"][0]["marker"]["color"] == [0.5]
    assert figure.to_plotly_json() == drawn == pickle.loads(pickle.dumps(figure)).to_dict()


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=9), st.booleans())
def test_an_axis_reaches_beyond_all_its_numbers_and_to_zero_where_asked(numbers: list[float], zero: bool):
    low, high = reach(np.array(numbers), zero=zero)
    known = [number for number in numbers if np.isfinite(number)]
    assert low < high
    assert all(low <= number <= high for number in known)
    if zero:
        assert low <= 0 <= high
        assert low == 0 or min(known) < 0
    elif known:
        assert low < min(known) and max(known) < high


def test_names_beside_a_figure_have_room_and_only_unusual_ones_are_measured_by_the_browser():
    short, long, longest = (with_names(quiet(Chart(go.Bar(y=[name], x=[1])), 300), [name]) for name in ("cat", "traffic light", "x" * 60))
    assert 30 < short.layout.margin.l < long.layout.margin.l < longest.layout.margin.l < 300
    assert [bool(figure.layout.yaxis.automargin) for figure in (short, long, longest)] == [False, False, True]
    assert short.layout.margin.t == long.layout.margin.t == 56


def test_only_a_legend_that_may_need_several_rows_is_measured_by_the_browser():
    def figure(*names: str) -> go.Figure:
        return quiet(Chart([go.Scatter(y=[1], name=name, showlegend=True) for name in names]), 300)

    assert not figure("better", "worse", "not distinguishable").layout.margin.autoexpand
    assert figure(*(f"shapes-distilled-seed{seed}" for seed in range(3))).layout.margin.autoexpand
    assert not quiet(Chart([go.Scatter(y=[1], name="x" * 99, showlegend=False)]), 300).layout.margin.autoexpand
