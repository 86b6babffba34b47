"""Static drawings against the figures that they are made of: where marks stand, what is written, and what is refused."""

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from workbench.views.overview import layers_figure, progress_figure
from workbench.views.static_figure import WIDTH, static_svg
from workbench.views.style import Chart, interval, plain, quiet, saying
from workbench.views.training import training_figure

HOSTILE = "</svg><script>alert(1)</script> $x^2$ %{y} & _a_ \x07"


def chart(*traces: dict[str, Any], **layout: Any) -> go.Figure:
    figure = Chart()
    for trace in traces:
        figure.add_scatter(**trace)
    return quiet(figure, 300).update_layout(**layout)


def texts(svg: str) -> dict[str, tuple[float, float]]:
    """Where each text stands."""
    return {
        element.text or "": (float(element.attrib["x"]), float(element.attrib["y"])) for element in ElementTree.fromstring(svg).iter("text")
    }


def marks(svg: str, colour: str) -> np.ndarray:
    """Where the marks of a colour stand, ``[n, 2]``."""
    name = re.search(rf"\.(\w+){{fill:{colour}[;}}]", svg)
    assert name is not None
    found = re.findall(rf'<use [^>]*x="([-\d.]+)" y="([-\d.]+)" class="{name[1]}"', svg)
    return np.array(found, float)


def on_scale(svg: str, values: np.ndarray, ticks: tuple[str, str], side: int, logarithmic: bool = False) -> np.ndarray:
    """Where values stand along an axis, computed from where two of its numbers are written."""
    scale = np.log10 if logarithmic else np.asarray
    places = [texts(svg)[tick][side] for tick in ticks]
    first, second = (scale(float(tick)) for tick in ticks)
    # a number of the y axis is written around its place, so only differences count
    return places[0] + (scale(values) - first) / (second - first) * (places[1] - places[0])


def test_marks_stand_where_the_numbers_of_the_axes_say():
    x, y = np.array([100.0, 250.0, 400.0]), np.array([3.0, 7.0, 1.5])
    svg = static_svg(chart({"x": x, "y": y, "mode": "lines+markers", "line_color": "#123456"}))
    drawn = marks(svg, "#123456")
    assert drawn[:, 0] == pytest.approx(on_scale(svg, x, ("100", "400"), 0), abs=0.5)
    assert np.diff(drawn[:, 1]) == pytest.approx(np.diff(on_scale(svg, y, ("2", "6"), 1)), abs=0.5)


def test_a_logarithmic_axis_and_stated_ends_are_kept():
    x, y = np.array([1.0, 2.0, 3.0]), np.array([10.0, 100.0, 1000.0])
    figure = chart({"x": x, "y": y, "mode": "markers", "marker_color": "#123456"}, yaxis_type="log", xaxis_range=[4, 0])
    svg = static_svg(figure)
    drawn = marks(svg, "#123456")
    assert np.diff(drawn[:, 1]) == pytest.approx(np.diff(on_scale(svg, y, ("10", "1000"), 1, logarithmic=True)), abs=0.5)
    left, right = figure.layout.margin.l, WIDTH - figure.layout.margin.r
    assert drawn[:, 0] == pytest.approx(right + (left - right) * x / 4, abs=0.5)  # from 4 at the left to 0 at the right


def test_an_interval_reaches_from_its_low_to_its_high_end():
    ends = (np.array([2.0]), np.array([1.0]), np.array([4.0]))
    svg = static_svg(chart({"x": ends[0], "y": [0], "mode": "markers", "error_x": interval(ends, "#123456"), "marker_color": "#654321"},
                           xaxis_range=[0, 5]))  # fmt: skip
    name = re.search(r"\.(\w+){fill:none;stroke:#123456", svg)
    assert name is not None
    found = re.findall(rf'd="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+"[^>]*class="{name[1]}"', svg)
    left, right = 56, WIDTH - 12
    assert [float(end) for end in found[0]] == pytest.approx([left + (right - left) * value / 5 for value in (1, 4)], abs=0.5)


def test_names_are_drawn_as_the_characters_that_they_are():
    trace = {"x": [0, 1], "y": [0, 1], "mode": "lines", "name": plain(HOSTILE), "showlegend": True}
    svg = static_svg(chart(trace, yaxis={"tickvals": [0], "ticktext": [plain(HOSTILE)]}), label=HOSTILE)
    assert "<script" not in svg and svg.count("</svg>") == 1
    assert HOSTILE.replace("\x07", "") in texts(svg)


def test_every_name_of_a_long_legend_stands_inside_the_figure_and_on_no_other():
    names = [f"a run with a long name {number}" for number in range(12)]
    svg = static_svg(chart(*({"x": [0, 1], "y": [0, 1], "mode": "lines", "name": name} for name in names)))
    places = [texts(svg)[name] for name in names]
    assert len(set(places)) == len(names) and all(0 < x < WIDTH - 120 and y > 0 for x, y in places)
    assert min(texts(svg)["0"][1], texts(svg)["1"][1]) > max(y for _, y in places)


def test_text_takes_the_colour_of_the_page_and_nothing_is_asked_of_the_network():
    svg = static_svg(chart({"x": [0, 1], "y": [0, 1], "mode": "lines", "name": "a"}, xaxis_title_text="step"))
    sheet = dict(re.findall(r"\.(\w+){([^}]*)}", svg))
    assert all("fill:currentColor" in sheet[name] for name in re.findall(r'<text class="(\w+)"', svg))
    assert "http" not in svg and "@import" not in svg and set(re.findall(r'href="(.)', svg)) <= {"#"}
    assert all(f'id="{target}"' in svg for target in re.findall(r'(?:href="#|url\(#)([^")]+)', svg))


def test_equal_figures_give_equal_text_and_others_share_no_id_or_class():
    figures = [chart({"x": [0, 1], "y": [0, end], "mode": "lines+markers", "line_color": "#123456"}) for end in (1, 2)]
    first, second = map(static_svg, figures)
    assert first == static_svg(figures[0])
    ids = [set(re.findall(r'(?:id|class)="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]


@pytest.mark.parametrize(
    "figure",
    [
        go.Figure(go.Bar(x=[1], y=[1])), chart({"x": [0], "y": [0], "mode": "markers+text"}),
        chart({"x": [0, 1], "y": [0, 1], "mode": "lines", "fill": "toself"}),
        chart({"x": [0], "y": [0], "mode": "markers"}, shapes=[{"type": "circle", "x0": 0, "x1": 1, "y0": 0, "y1": 1}]),
        chart({"x": [0], "y": [0], "mode": "markers"}, annotations=[{"text": "a", "x": 0, "y": 0}]),
    ],
    ids=["bar", "text", "fill", "circle", "arrow"],
)  # fmt: skip
def test_a_figure_with_a_part_that_cannot_be_drawn_is_refused(figure: go.Figure):
    with pytest.raises(ValueError, match="cannot be drawn as static SVG"):
        static_svg(figure)


def test_the_figures_of_the_report_are_drawn_with_their_titles_and_every_run():
    steps = [10.0, 20.0, 30.0]
    shares, counts = [None, 0.2, 0.1], {"n": 9, "found_by_n": 9}
    run = pd.DataFrame({"step": steps, "ap": [0.1, 0.2, 0.3], "churn": shares, "found_by_churn": shares, "instability": shares, **counts})
    points = pd.concat([run.assign(run=name) for name in ("one", "two")])
    written = texts(static_svg(progress_figure(points, ["one", "two"])))
    assert {"one", "two", "AP", "Found-by churn", "AP (%)", "step", "queries per image"} <= set(written)
    layers = pd.DataFrame({"run": "one", "model": "student", "layer": [1, 2], "churn": [0.5, 0.25], "n": 9})
    assert {"0 to 1", "1 to 2", "decoder layers"} <= set(texts(static_svg(layers_figure(layers, ["one"]))))
    lines = pd.DataFrame({"step": steps, "loss": [3.0, 2.0, 1.0], "raw/a.b": [1.0, 0.1, 0.01], "cosine/a.b": [0.1, -0.1, 0.2]})
    assert {"Loss", "Distillation terms, raw", "Cosine with detection", "a.b"} <= set(texts(static_svg(training_figure(lines))))
    assert "not defined because of <b>" in texts(static_svg(saying("not defined because of <b>")))
