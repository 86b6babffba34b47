import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.views.style import COLOURS, plain, quiet, run_style, with_lines

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
    page = chromium.new_page(viewport={"width": 900, "height": 700})
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
