"""Clicks on marks of charts in Chromium: each shows what is behind the mark, and becomes part of the link."""

import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import settle
from tests.app.test_pages import OpenPage, query, shown_table
from tests.patience import wait_until
from workbench.analysis.detection.confusion import confusion_pairs
from workbench.analysis.detection.lost import CELLS
from workbench.analysis.of_run import last_with_queries, open_data
from workbench.analysis.results.of_runs import Results
from workbench.store.detections import read_detections
from workbench.store.queries import read_queries
from workbench.store.run import Run

pytestmark = pytest.mark.browser
# where the mark of a trace lies on screen, by plotly's own axes
MARK = """([key, trace, index]) => {
  const plot = document.querySelector(`.st-key-${key} .js-plotly-plot`);
  if (!plot?._fullLayout?.xaxis || !plot.querySelector('.main-svg')) return null;
  plot.scrollIntoView({block: 'center'});
  const {xaxis, yaxis} = plot._fullLayout, data = plot._fullData[trace], around = plot.getBoundingClientRect();
  return {
    x: around.x + xaxis._offset + xaxis.d2p(data.x[index]),
    y: around.y + yaxis._offset + yaxis.d2p(data.y[index]) * (data.type === 'bar' ? 0.5 : 1)
       + (data.type === 'bar' ? 0.5 * yaxis.d2p(0) : 0),
    carried: [...(data.customdata[index]?.length ? data.customdata[index] : Object.values(data.customdata[index]))].map(Number),
  };
}"""


# what the marks carry that plotly holds to be under the pointer; a press on the mouse is a click on those
UNDER_POINTER = """([key, carried]) => {
  const points = document.querySelector(`.st-key-${key} .js-plotly-plot`)?._hoverdata ?? [];
  return points.some(point => String(Object.values(point.customdata ?? {}).map(Number)) === String(carried));
}"""


def click_mark(page: Any, key: str, trace: int, index: int) -> list[int]:
    """Clicks a mark of the chart ``key``; returns what it carries.

    A chart may still move after it was found, when something above it is drawn late. So the mark is looked up until plotly says that it,
    and no other, is under the pointer, and the button is pressed without another move.
    """
    settle(page)
    carried: list[Any] = []

    def under_the_pointer() -> bool:
        mark = page.wait_for_function(MARK, arg=[key, trace, index]).json_value()
        page.mouse.move(mark["x"] - 1, mark["y"])
        page.mouse.move(mark["x"], mark["y"])
        page.wait_for_timeout(200)  # plotly looks at most every 50 ms for what is under the pointer
        carried[:] = mark["carried"]
        return page.evaluate(UNDER_POINTER, [key, carried])

    wait_until(under_the_pointer, 20, what=lambda: f"a pointer on mark {index} of trace {trace} of {key}")
    page.mouse.down()
    page.mouse.up()
    return [int(number) for number in carried]


def wait_to_see(read: Callable[[], Any], wanted: Any) -> None:
    """Waits until ``read`` gives ``wanted``: a part of a page is drawn anew after its link has changed."""
    shown: list[Any] = []

    def seen() -> bool:
        shown[:] = [read()]
        return shown == [wanted]

    wait_until(seen, 20, what=lambda: f"{wanted}, while {shown[0]} is shown,")


def test_a_click_on_a_cell_of_the_matrix_shows_its_image_and_the_queries_that_held_the_target(
    address: str, runs_root: Path, open_page: OpenPage
):
    page = open_page(f"{address}/stability?run=distilled&compared=distilled")
    image, target, _ = click_mark(page, "matrix", 1, -1 + 20)
    page.wait_for_url(re.compile(rf"[?&]target={image}-{target}(&|$)"))
    settle(page)
    rows = read_queries(Run(runs_root / "distilled"), "val", [10, 20, 30], where="model = 'student' and layer = 1 and match >= 0")
    own = rows[(rows["image_id"] == image) & (rows["match"] == target)].sort_values("step")
    assert len(own)
    assert f"Target {target} of image {image} " in page.locator(".st-key-holders ~ *").first.evaluate("e => e.parentElement.innerText")

    def holders() -> list[list[int]]:
        _, *shown = shown_table(page, "step")
        return [[int(cell) for cell in row[:2]] for row in shown[: len(own)]]

    wait_to_see(holders, own[["step", "query"]].to_numpy().tolist())


def test_a_click_on_a_slot_shows_that_slots_images(address: str, runs_root: Path, open_page: OpenPage):
    page = open_page(f"{address}/value?run=distilled&slots=served")
    first = query(page.url)["query"][0]
    slot, _ = click_mark(page, "slot-values", 0, 1)
    assert str(slot) != first
    page.wait_for_url(re.compile(rf"[?&]query={slot}(&|$)"))
    settle(page)
    rows = read_queries(Run(runs_root / "distilled"), "val", [30], where="model = 'student' and layer = 1 and match >= 0")
    own = rows[rows["query"] == slot]

    def images() -> list[int]:
        header, *shown = shown_table(page, "image")
        return sorted(int(row[header.index("image id")]) for row in shown[: len(own)])

    wait_to_see(images, sorted(own["image_id"]))


def test_a_click_on_a_cell_of_the_confusion_lists_its_pairs(address: str, runs_root: Path, open_page: OpenPage):
    page = open_page(f"{address}/errors?run=distilled&part=classes")
    truth, predicted = click_mark(page, "confusion", 1, 2)
    page.wait_for_url(re.compile(rf"[?&]cell={truth}_{predicted}(&|$)"))
    settle(page)
    run = Run(runs_root / "distilled")
    pairs = confusion_pairs(open_data(run.info()).coco(), read_detections(run, "val", 30))
    pairs = pairs[(pairs["truth"] == truth) & (pairs["predicted"] == predicted)]
    page.get_by_text(f"n = {len(pairs)} pairs behind the cell").wait_for()
    link = urllib.parse.urlparse(page.url)
    assert query(open_page(link.geturl()).url)["cell"] == [f"{truth}_{predicted}"]


def test_a_click_on_a_cell_of_what_was_found_shows_its_images_and_a_click_on_one_shows_it_large(
    address: str, runs_root: Path, open_page: OpenPage
):
    at = last_with_queries(Run(runs_root / "distilled"))
    results = Results()
    page = open_page(f"{address}/errors?run=distilled&part=lost&found=neither&least=0.2")
    (cell,) = click_mark(page, "found-cells", 3, 22)  # the middle of the fifteen marks of the second cell
    assert list(CELLS)[cell] == "lost"
    page.wait_for_url(re.compile(r"[?&]found=lost(&|$)"))
    settle(page)
    images = results.cell_images(at, at, 0.2, "lost")
    assert len(images) > 1
    page.get_by_text(f"n = {len(images)} images").wait_for()
    (image,) = click_mark(page, "found-images", 0, 1)
    assert image == images["image_id"][1]
    page.wait_for_url(re.compile(rf"[?&]image_id={image}(&|$)"))
    page.get_by_text(f"Image {image}: n = {images['n'][1]} targets of the cell").wait_for()
