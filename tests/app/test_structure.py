"""The picture of every page: what stands on it, in which order, and that nothing is empty, overlaps, or leaves the window."""

import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import settle
from tests.contrast import FAINT, LEAST_TEXT

pytestmark = pytest.mark.browser
# path, headings, charts, tables
PAGES = [
    ("?run=undistilled&run=distilled", ["Final AP", "Churn between decoder layers", "Difference from the undistilled arm"], 4, 2),
    ("diagnosis?run=distilled", ["Causes checked", "What was measured"], 1, 1),
    ("runs", ["Saved sets"], 0, 1),
    ("training?run=distilled", ["Every term of the run on the left"], 2, 0),
    (
        "stability?run=distilled&compared=undistilled&compared=distilled",
        ["Match stability during training", "Churn between decoder layers", "Agreement with the teacher", "Targets found by both seeds",
         "One run in detail", "Why targets change their query"], 10, 1,
    ),
    ("value?part=slots&run=distilled&slots=served", [], 4, 1),
    ("value?part=gain&run=distilled", [], 3, 1),
    ("value?part=queries&run=distilled", [], 1, 1),
    ("masks?run=distilled&rank=1", [], 1, 1),
    ("image?run=distilled&score=0", [], 2, 2),
    ("errors?part=lost&run=distilled&least=0&found=neither", [], 6, 0),
    ("errors?part=types&run=distilled", [], 2, 0),
    ("errors?part=classes&run=distilled&least=0", [], 4, 1),
    ("errors?part=images&run=distilled&least=0", [], 2, 1),
    ("errors?part=slices&run=distilled", [], 2, 0),
    ("storage", ["Running now", "Runs on disk", "Teacher caches"], 1, 1),
]  # fmt: skip
DRAWN = """([charts, tables]) => {
  const wide = element => element.getBoundingClientRect().width > 60;
  return [...document.querySelectorAll('.js-plotly-plot:has(.main-svg)')].filter(wide).length >= charts
    && [...document.querySelectorAll('[data-testid=stDataFrame]')].filter(wide).length >= tables;
}"""
# curves over steps, whose axes plotly works out
CURVES = {"training-distilled", "results", "progress", "layers", "stability-arms", "churn-layers", "stability-agreement",
          "stability-layers"}  # fmt: skip
STRUCTURE = """() => ({
  headings: [...document.querySelectorAll('[data-testid=stMain] [data-testid=stMarkdown] p > strong')].map(e => e.textContent),
  kinds: ['stPlotlyChart', 'stDataFrame', 'stException', 'stAlertContentError'].map(
    kind => document.querySelectorAll(`[data-testid=${kind}]`).length),
  boxes: [...document.querySelectorAll('[data-testid=stPlotlyChart], [data-testid=stDataFrame], [data-testid=stCaptionContainer]')].map(
    e => e.getBoundingClientRect()).filter(r => r.height).map(r => [r.left, r.top, r.right, r.bottom]),
  overflow: document.documentElement.scrollWidth - innerWidth,
  unexplained: [...document.querySelectorAll('[data-testid=stPlotlyChart]')].filter(chart => {
    const after = [...document.querySelectorAll('[data-testid=stCaptionContainer]')].map(e => e.getBoundingClientRect());
    const own = chart.getBoundingClientRect();
    return !after.some(r => r.top >= own.bottom - 1 && r.top < own.bottom + 90 && r.left < own.right && r.right > own.left);
  }).length,
  marks: document.querySelectorAll('.js-plotly-plot .point').length,
})"""

# Streamlit hands every figure to plotly twice, and plotly draws it a second time where one of these holds
DRAWN_AGAIN = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(chart => {
  const typed = value => ArrayBuffer.isView(value) || (value && typeof value === 'object' && Object.values(value).some(typed));
  const key = [...chart.closest('[class*=st-key-]').classList].find(name => name.startsWith('st-key-')).replace('st-key-', '');
  return [['no revision', chart.layout.datarevision === undefined], ['template', chart.layout.template !== undefined],
          ['typed array', chart.data.some(typed)]].filter(([, holds]) => holds).map(([name]) => `${key}: ${name}`);
})"""
# plotly's idea of an axis: what stands on it lies between its ends
OUTSIDE = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(chart => chart._fullData.flatMap(
  trace => ['x', 'y'].flatMap(side => {
  const axis = chart._fullLayout[(trace[side + 'axis'] ?? side).replace(side, side + 'axis')];
  const shown = [...trace[side] ?? []].filter(Number.isFinite).map(value => axis.type === 'log' ? Math.log10(value) : value);
  const [low, high] = [Math.min(...axis.range), Math.max(...axis.range)];
  return shown.every(value => low - 1e-9 <= value && value <= high + 1e-9) ? [] : [`${axis._name} ${axis.range} ${shown.slice(0, 3)}`];
})))"""
LOST = """() => {
  const ink = getComputedStyle(document.querySelector('[data-testid=stMain]')).color;
  return [...document.querySelectorAll('.stPlotlyChart :is(.xtitle, .ytitle, .xtick text, .ytick text, .legendtext, .annotation-text)')]
    .filter(text => text.style.fill === 'rgb(49, 51, 63)' && getComputedStyle(text).fill !== ink).map(text => text.textContent);
}"""


@pytest.fixture
def overlapping() -> Callable[[list[list[float]]], Iterator[tuple[Any, Any]]]:
    def pairs(boxes: list[list[float]]) -> Iterator[tuple[Any, Any]]:
        for a, b in combinations(boxes, 2):
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            if width > 2 and height > 2:
                yield a, b

    return pairs


@pytest.mark.parametrize(
    ("path", "headings", "charts", "tables"), PAGES, ids=[re.sub(r"\?(part=)?", " ", path).partition("&")[0] for path, *_ in PAGES]
)
def test_the_picture_of_a_page_holds_what_it_should_in_both_themes(
    address: str, open_page: Any, overlapping: Any, tmp_path: Path, path: str, headings: list[str], charts: int, tables: int
):
    page = open_page(f"{address}/{path}")
    page.wait_for_function(DRAWN, arg=[charts, tables])
    settle(page)
    found = page.evaluate(STRUCTURE)
    assert found["headings"] == headings
    assert found["kinds"] == [charts, tables, 0, 0]
    assert all(right - left > 60 and bottom - top > 10 for left, top, right, bottom in found["boxes"])
    assert list(overlapping(found["boxes"])) == []
    assert found["overflow"] <= 0
    assert found["unexplained"] == 0  # a line below every chart
    assert found["marks"] < 20_000  # so that a page stays light
    assert set(page.evaluate(DRAWN_AGAIN)) <= {f"{chart}: no revision" for chart in CURVES}
    assert page.evaluate(OUTSIDE) == []
    shades: dict[str, np.ndarray] = {}
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function("dark => (getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
                               ".match(/\\d+/g)[0] < 128) === dark", arg=theme == "dark")  # fmt: skip
        assert page.evaluate(LOST) == []  # text of charts takes the ink of the page
        assert page.evaluate(FAINT, LEAST_TEXT) == []
        page.screenshot(path=tmp_path / f"{theme}.png")
        shades[theme] = np.asarray(Image.open(tmp_path / f"{theme}.png").convert("L"))
    assert np.median(shades["light"]) > 200
    assert np.median(shades["dark"]) < 60
    # text and marks stand out from either ground
    assert all((abs(pixels.astype(int) - np.median(pixels)) > 80).mean() > 0.004 for pixels in shades.values())
    assert page.evaluate(STRUCTURE)["headings"] == headings
