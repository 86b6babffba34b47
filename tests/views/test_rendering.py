from typing import Any

import plotly.graph_objects as go
import pytest
from jinja2 import DictLoader, UndefinedError

from workbench.commands.progress import _Cell
from workbench.views import rendering
from workbench.views.rendering import render
from workbench.views.report_blocks import Cell, Column, figure, share
from workbench.views.style import VERDICTS, plain

HOSTILE = "</script><img src=x onerror=alert(1)>"


def test_a_name_in_a_notebooks_progress_bar_stays_text():
    cell = _Cell(HOSTILE)
    cell.step, cell.steps, cell.lines = 3, 7, [f"message of {HOSTILE}"]
    page = cell._repr_html_()
    assert HOSTILE not in page and page.count("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;") == 2
    assert '<progress value="3" max="7">' in page


def test_a_value_that_a_template_lacks_is_an_error_and_not_an_empty_place():
    with pytest.raises(UndefinedError, match="heading"):
        render("progress.html.j2", step=1, steps=2, lines=[])


def test_every_template_escapes_whatever_its_name_ends_in(monkeypatch: pytest.MonkeyPatch):
    names = ("a.html.j2", "a.html", "a.j2", "a")
    monkeypatch.setattr(rendering._ENVIRONMENT, "loader", DictLoader(dict.fromkeys(names, "{{ name }}")))
    assert [render(name, name="<b>") for name in names] == ["&lt;b&gt;"] * 4


def test_a_name_in_a_figure_stays_text():
    drawn = figure(go.Figure(go.Scatter(x=[1], y=[1], mode="markers", name=plain(HOSTILE), showlegend=True)), f"caption of {HOSTILE}")
    assert HOSTILE not in drawn.html and "<img" not in drawn.html and "<script" not in drawn.html
    assert drawn.html.count("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;") == 2  # in the legend and the label


@pytest.mark.parametrize(
    ("column", "row", "cell"),
    [
        (share("churn %", "churn"), {"churn": 0.25, "low": 0.1, "high": 0.5}, Cell("25.0", "[10.0, 50.0]")),
        (share("churn %", "churn"), {"churn": 0.25, "low": None, "high": 0.5}, Cell("25.0")),
        (Column("steps", "steps", digits=0), {"steps": 1200.0}, Cell("1,200")),
        (Column("image", "image_id"), {"image_id": 1200}, Cell("1200")),
        (Column("run", "run"), {"run": HOSTILE}, Cell(HOSTILE, is_words=True)),
        (Column("gain", "gain"), {"gain": float("nan")}, Cell("-")),
        (Column("gain", "gain"), {}, Cell("-")),
        (Column("gain", "gain", digits="places"), {"gain": 0.25, "places": 1}, Cell("0.2")),
        (Column("verdict", "verdict"), {"verdict": "better"}, Cell("better", is_words=True, sign="▲", hue=VERDICTS["better"].colour)),
        (Column("number", "name", meanings={"AP": "precision"}), {"name": "AP"}, Cell("AP", is_words=True, meaning="precision")),
    ],
)
def test_a_cell_shows_an_estimate_with_its_interval_and_counts_as_they_are(column: Column, row: dict[str, Any], cell: Cell):
    assert column.cell(row) == cell
