"""The report of a folder of real runs: its size, what it asks for, and that it says what its numbers say."""

import json
import re
from pathlib import Path

import pytest

from tests.app.example_runs import make_runs
from tests.shared_runs import shared_copy
from workbench.analysis.report.answer import Answer
from workbench.store.run import Run
from workbench.views.report import write_report

MOST_BYTES = 1_500_000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shared_copy(tmp_path_factory, "dashboard", lambda folder: make_runs(folder / "runs")) / "runs"
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([Run(root / name) for name in ("undistilled", "distilled", "tiny-teacher")], out)
    return out


def test_the_page_is_small_and_refers_to_nothing_outside_of_itself(page: Path):
    text = page.read_text()
    assert len(text.encode()) <= MOST_BYTES
    assert "<script" not in text and "http://" not in text and "https://" not in text and "@import" not in text
    targets = re.findall(r'(?:href|src|xlink:href)="([^"]*)"|url\(([^)]*)\)', text)
    assert targets and all((one or other).startswith("#") for one, other in targets)
    assert all(re.search(rf'id="{re.escape((one or other)[1:])}"', text) for one, other in targets)


def test_the_page_begins_with_the_answer(page: Path):
    numbers, text = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    (one,) = numbers["answers"]
    found = Answer.from_json(one)
    assert found.to_json() == one and found.equal_steps is not None
    headings = re.findall(r'<h2 id="[^"]*">([^<]*)</h2>', text)
    assert headings[:3] == ["Answer", "Results", "Verdicts"]
    assert "1 of the 5 seeds that a statement about the method needs" in text
    assert f"{100 * found.equal_steps.difference:+.1f}" in text[: text.index('<h2 id="results">')]
    assert re.findall(r'<a href="#([^"]*)">', text) == [heading.lower().replace(" ", "-") for heading in headings]


def test_every_verdict_has_a_mark_in_the_figure_and_a_row_in_the_table(page: Path):
    numbers, text = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    (found,) = numbers["comparisons"]
    chapter = text[text.index('<h2 id="verdicts">') : text.index('<h2 id="diagnosis">')]
    table = chapter[chapter.index("<table") :]
    rows = [re.sub(r"<[^>]*>", " ", row).split() for row in table.split("</tr>")[1:-1]]
    assert len(rows) == len(found["verdicts"]) + len(found["errors"])
    for verdict in found["verdicts"]:
        assert verdict["quantity"] in chapter and verdict["quantity"] in table
    ap = found["verdicts"][0]
    shown = [f"{100 * ap[name]:,.1f}" for name in ("baseline", "other", "difference", "low", "high")]
    assert rows[0][:8] == ["AP", "percentage", "points", *shown]
