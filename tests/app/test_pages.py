"""Both pages in Chromium, on runs trained by the project's own loop."""

import json
import re
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tests.app.conftest import serving
from tests.app.example_runs import HOSTILE_CLASSES, HOSTILE_RUN
from workbench.analysis.report.summary import table
from workbench.store.queries import read_queries
from workbench.store.run import Run, list_runs

pytestmark = pytest.mark.browser
OpenPage = Callable[[str], Any]
PICTURE = ".js-plotly-plot image"


def text_of(heading: str) -> str:
    """Expression for the cells of the table whose first column has that heading, null while it is not drawn.

    Tables of one page appear in any order, so none is meant by its place. Streamlit draws each on a canvas, with cells for screen readers.
    """
    tables = "[...document.querySelectorAll('[data-testid=stDataFrame] canvas table')]"
    cells = "table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent))"
    return f"({tables}.map({cells}).find(rows => rows[0]?.[0] === {json.dumps(heading)}) ?? null)"


def shown_table(page: Any, heading: str) -> list[list[str]]:
    """Cells of the table whose first column has that heading, as soon as it is drawn."""
    return page.wait_for_function(f"() => {text_of(heading)}").json_value()


def charts_drawn(page: Any, count: int) -> bool:
    """Waits for that many charts, because each is drawn in its own time; false if another number was drawn in the end."""
    page.wait_for_function("count => document.querySelectorAll('.js-plotly-plot:has(.main-svg)').length >= count", arg=count)
    return page.locator(".js-plotly-plot").count() == count


def exceptions(page: Any) -> int:
    return page.locator("[data-testid=stException]").count()


def picture(page: Any) -> str:
    """The pixels on screen, as the address of the embedded image."""
    page.wait_for_selector(PICTURE)
    return page.locator(PICTURE).first.evaluate("image => image.href.baseVal")


def query(url: str) -> dict[str, list[str]]:
    return urllib.parse.parse_qs(urllib.parse.urlparse(url).query)


def test_the_overview_draws_every_chart_and_no_exception(address: str, open_page: OpenPage):
    page = open_page(f"{address}/?run=undistilled&run=distilled")
    assert charts_drawn(page, 4)
    assert exceptions(page) == 0
    assert page.locator(".legendtext").all_text_contents()[:2] == ["undistilled", "distilled"]


def test_the_tab_of_the_browser_is_named_after_the_page(address: str, open_page: OpenPage):
    for path, title in (("", "Overview"), ("training", "Training"), ("errors", "Errors")):
        open_page(f"{address}/{path}").wait_for_function("title => document.title === title", arg=f"{title} · Workbench")


def test_the_numbers_behind_a_chart_can_be_saved_and_are_those_of_the_run(address: str, runs_root: Path, open_page: OpenPage):
    page = open_page(f"{address}/training?run=distilled")
    with page.expect_download() as started:
        page.locator(".st-key-training-distilled-csv").get_by_role("button", name="CSV").click()
    saved = pd.read_csv(started.value.path())
    logged = pd.DataFrame(Run(runs_root / "distilled").metrics())
    assert saved["step"].tolist() == logged["step"].tolist()
    assert saved["loss"].tolist() == pytest.approx(logged["loss"].tolist())
    chart = page.locator(".st-key-training-distilled")
    chart.locator(".js-plotly-plot").hover()
    with page.expect_download() as started:
        chart.locator("[data-title^='Download plot']").first.click()
    assert Path(started.value.path()).read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_the_numbers_of_the_run_directory(address: str, runs_root: Path, open_page: OpenPage):
    header, *rows = shown_table(open_page(f"{address}/?run=undistilled&run=distilled&columns=all"), "run")
    teacher = dict(zip(header, rows[0], strict=True))
    runs = [Run(runs_root / name) for name in ("undistilled", "distilled")]
    assert [row[header.index("run")] for row in rows] == ["shapes_teacher", "undistilled", "distilled"]
    ap = "AP (test) [95 %]"
    assert float(teacher[ap]) == pytest.approx(100 * runs[1].evaluations()[-1]["teacher"]["coco"]["ap"], abs=0.05)
    assert float(teacher[ap]) > 40
    for row, run, numbers in zip(rows[1:], runs, table(runs).to_dict("records"), strict=True):
        shown = dict(zip(header, row, strict=True))
        assert shown["seed"] == str(run.info()["seed"])
        assert float(shown[ap].split()[0]) == pytest.approx(100 * run.evaluations()[-1]["coco"]["ap"], abs=0.05)
        assert float(shown["churn (%)"]) == pytest.approx(100 * numbers["churn"])
        assert float(shown["instability (queries)"]) == pytest.approx(numbers["instability"])
        assert float(shown["agreement (%)"]) == pytest.approx(100 * numbers["agreement"])
        assert float(shown["quality (0 to 1)"]) == pytest.approx(numbers["quality"])


def test_the_image_page_draws_the_image_and_its_tables(address: str, runs_root: Path, open_page: OpenPage):
    page = open_page(f"{address}/image?run=undistilled&score=0")
    assert charts_drawn(page, 2)
    assert exceptions(page) == 0
    assert picture(page).startswith("data:image/png;base64,")
    assert page.locator(".st-key-figure .legendtext").all_text_contents() == ["targets", "teacher", "student", "pairs"]
    header, *rows = shown_table(page, "student query")
    assert header[:3] == ["student query", "class", "score"]
    run = Run(runs_root / "undistilled")
    queries = read_queries(run, "val", [30], where="image_id = 1 and layer = 1 and model = 'student'").sort_values("score", ascending=False)
    for row, expected in zip(rows, queries.to_dict("records"), strict=False):
        shown = dict(zip(header, row, strict=True))
        assert (int(shown["student query"]), int(shown["teacher query"])) == (expected["query"], expected["mate"])
        assert float(shown["L1"]) == pytest.approx(expected["mate_cost_bbox"], abs=1e-6)


def test_another_image_changes_the_picture_and_the_address(address: str, open_page: OpenPage):
    page = open_page(f"{address}/image?run=undistilled")
    first = picture(page)
    page.get_by_test_id("stNumberInputStepUp").click()
    page.wait_for_url(re.compile(r"[?&]image=2(&|$)"))
    page.wait_for_function(f"before => document.querySelector('{PICTURE}').href.baseVal !== before", arg=first)
    assert query(page.url)["image"] == ["2"]


def test_another_layer_changes_the_mates_and_the_address(address: str, open_page: OpenPage):
    page = open_page(f"{address}/image?run=undistilled&score=0&image=3")
    assert query(page.url)["layer"] == ["1"]
    last = shown_table(page, "student query")
    page.get_by_role("combobox", name="Layer").click()
    page.get_by_role("option", name="0", exact=True).click()
    page.wait_for_url(re.compile(r"[?&]layer=0(&|$)"))
    page.wait_for_function(f"before => JSON.stringify({text_of('student query')} ?? before) !== JSON.stringify(before)", arg=last)


def test_a_link_opens_the_same_view(address: str, open_page: OpenPage):
    link = f"{address}/image?run=distilled&split=val&step=20&image=4&layer=0&score=0.05&mask=layer+3%2C+level+0&opacity=0.5"
    first, second = open_page(link), open_page(link)
    assert query(first.url) == query(second.url) == query(link)
    assert picture(first) == picture(second)
    for heading in ("student query", "target"):
        assert shown_table(first, heading) == shown_table(second, heading)
    assert "mask" in first.locator(".legendtext").all_text_contents()
    assert picture(open_page(link.replace("image=4", "image=5"))) != picture(first)


def test_a_link_with_values_that_are_not_there_opens_a_view_that_is(address: str, open_page: OpenPage):
    page = open_page(f"{address}/image?run=../../etc&step=7&image=99999&layer=x&score=nan&mask=9&opacity=-1")
    assert exceptions(page) == 0
    assert picture(page).startswith("data:image/png;base64,")
    asked = query(page.url)
    assert (asked["image"], asked["score"], asked["mask"]) == (["1"], ["0.3"], ["off"])
    assert asked["run"] != ["../../etc"]


def test_every_run_of_the_folder_is_offered(address: str, runs_root: Path, open_page: OpenPage):
    page = open_page(f"{address}/image")
    page.get_by_role("combobox", name="Run").click()
    page.wait_for_selector("[role=option]")
    assert sorted(page.get_by_role("option").all_text_contents()) == sorted(run.name for run in list_runs(runs_root))


def test_hostile_names_of_runs_and_classes_are_shown_as_text(hostile_address: str, open_page: OpenPage):
    run = urllib.parse.quote(HOSTILE_RUN)
    overview = open_page(f"{hostile_address}/?run={run}&columns=all")
    header, *rows = shown_table(overview, "run")
    assert HOSTILE_RUN in rows[-1]
    # cells outside the window are not in the table for screen readers
    assert {title for title in header if title.startswith("AP ")} & {f"AP {name} (val)" for name in HOSTILE_CLASSES}
    assert overview.locator(".legendtext").first.text_content() == HOSTILE_RUN
    image = open_page(f"{hostile_address}/image?run={run}&score=0")
    classes = {cell for row in shown_table(image, "student query") for cell in row} & set(HOSTILE_CLASSES)
    drawn = " ".join(image.locator(".js-plotly-plot text").all_text_contents())
    assert classes
    assert all(name in drawn for name in classes)
    others = [open_page(f"{hostile_address}/{name}?run={run}") for name in ("errors", "value", "stability", "storage", "diagnosis")]
    for page in (overview, image, *others):
        assert exceptions(page) == 0
        assert page.locator("img[src=x], .katex").count() == 0
        assert "bold" not in page.locator("strong, em").all_text_contents()


def test_runs_that_cannot_be_shown_are_named_and_the_others_are_shown(hostile_address: str, open_page: OpenPage):
    page = open_page(f"{hostile_address}/?run=tiny-teacher&run=without-queries")
    assert exceptions(page) == 0
    assert charts_drawn(page, 3)
    text = page.locator("[data-testid=stMain]").inner_text()
    assert "run 'of-another-version' cannot be read: its format is version 99, but this workbench reads version 1" in text
    assert "garbled: " in text
    _, *rows = shown_table(page, "run")
    assert {row[0] for row in rows} >= {"tiny-teacher", "without-queries"}


def test_a_run_in_progress_is_shown_with_what_it_has_and_again_when_there_is_more(runs_root: Path, tmp_path: Path, open_page: OpenPage):
    source = Run(runs_root / "undistilled")
    info = {key: value for key, value in source.info().items() if key not in ("format_version", "created")}
    run = Run.create("in-progress", {**info, "state": "running"}, tmp_path)
    with run.locked(), serving(tmp_path) as address:
        page = open_page(address)
        assert "in-progress · running 0/30" in page.locator("[data-testid=stMultiSelect]").inner_text()
        assert "No evaluation yet" in open_page(f"{address}/image").locator("[data-testid=stAlert]").inner_text()
        run.metrics_path.write_text(source.metrics_path.read_text())
        line = source.evaluations()[0]
        run.evaluations_path.write_text(json.dumps({**line, "coco": {**line["coco"], "ap": 0.123}}) + "\n")
        page.wait_for_function(f"() => JSON.stringify({text_of('run')}).includes('12.3')")
        assert exceptions(page) == 0


def test_an_empty_folder_says_how_to_make_a_run_and_shows_one_that_appears(runs_root: Path, tmp_path: Path, open_page: OpenPage):
    with serving(tmp_path / "none") as address:
        for path in ("/", "/image"):
            page = open_page(address + path)
            assert "workbench demo" in page.locator("[data-testid=stCode]").inner_text()  # waits for it
            assert "No runs yet" in page.locator("[data-testid=stMain]").inner_text()
            assert exceptions(page) == 0
        shutil.copytree(runs_root, tmp_path / "none")
        assert charts_drawn(page, 2)


def test_the_server_listens_on_the_loopback_address_alone_and_ends_with_its_parent(runs_root: Path):
    def listening(port: int | None) -> set[str]:
        return {c.laddr.ip for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}

    with serving(runs_root) as address:
        port = urllib.parse.urlparse(address).port
        assert listening(port) == {"127.0.0.1"}
    assert listening(port) == set()
