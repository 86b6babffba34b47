import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.subplots import make_subplots

from tests.contrast import DARK, LEAST_MARK, LEAST_TEXT, LIGHT, contrast
from tests.patience import patient
from workbench.views.image import COST_PARTS
from workbench.views.search import OUTCOMES
from workbench.views.style import (
    COLOURS,
    GREY,
    VERDICTS,
    Chart,
    interval,
    noted,
    plain,
    quiet,
    reach,
    run_style,
    say,
    saying,
    with_lines,
    with_names,
)
from workbench.views.unsettled import HUES

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


def test_every_colour_of_a_mark_stands_out_from_the_ground_of_both_themes():
    hues = {*COLOURS, GREY, *(style.colour for style in VERDICTS.values()), *HUES.values(), *(part[3] for part in COST_PARTS),
            *(colour for _, colour, _ in OUTCOMES.values())}  # fmt: skip
    faint = {(hue, ground): contrast(hue, ground) for hue in hues for ground in (LIGHT, DARK) if contrast(hue, ground) < LEAST_MARK}
    assert faint == {}
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21) and contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.01)


def test_no_text_of_a_figure_is_grey_because_grey_is_too_faint_for_text():
    assert contrast(GREY, LIGHT) < LEAST_TEXT
    figures = [saying("nothing"), noted(saying("x"), "y"), say(make_subplots(1, 2), "z", 1, 2)]
    assert [note.font.color for figure in figures for note in figure.layout.annotations] == [None] * 4


def test_colour_blind_readers_tell_the_colours_of_runs_apart_as_well_as_those_of_okabe_and_ito():
    okabe_ito = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    assert least_distance(COLOURS) >= least_distance(okabe_ito)


# Machado, Oliveira and Fernandes, 2009, table 1: severity 1
SEEN = {
    "all cones": np.eye(3),
    "no long": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "no middle": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
}


def least_distance(colours: Sequence[str]) -> float:
    """The smallest distance of two colours in CIELAB, whoever sees them."""
    values = np.array([[int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)] for colour in colours])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) / [[0.9505], [1], [1.089]]
    found = []
    for eyes in SEEN.values():
        xyz = np.clip(linear @ eyes.T @ to_xyz.T, 0, None)
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
        found += [np.linalg.norm(lab[a] - lab[b]) for a in range(len(lab)) for b in range(a)]
    return float(min(found))
