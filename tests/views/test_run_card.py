"""The card of a run in a notebook: its numbers are those of the files, and names are text."""

import re
import shutil
from pathlib import Path

import pytest

import workbench.notebook as wb
from tests.app.example_runs import runs_in
from tests.conftest import ROOT
from workbench.errors import RunError
from workbench.store.changes import note, tag
from workbench.store.run import Run, append_line
from workbench.views.run_card import HEIGHT, WIDTH, ap_curve

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    group = {"recipe": HOSTILE, "arm": "<b>arm</b>", "seed": 3, "schedule": "equal steps"}
    run = Run.create(
        "a", {"state": "done", "group": group, "dataset": "</td>", "recipe": {"train": {"steps": 40}}, "best_step": 40}, tmp_path
    )
    for step, ap in ((10, 0.1), (20, 0.2), (40, 0.4)):
        append_line(run.evaluations_path, {"step": step, "split": "val", "coco": {"ap": ap}})
    append_line(run.evaluations_path, {"step": 40, "split": "test", "coco": {"ap": 0.375}})
    return run


def test_a_card_says_state_arm_seed_and_the_ap_that_represents_the_run(run: Run):
    shown = run._repr_html_()
    assert shown is not None
    text = re.sub(r"<[^>]*>", " ", shown)
    assert re.search(r"a\s+done", text) and re.search(r"seed\s+3\b", text) and re.search(r"37\.5\s+AP \(test, step 40\)", text)
    assert re.search(r'href="http://127\.0\.0\.1:\d+/\?run=a"', shown)
    assert repr(run) == "Run('a')"


def test_the_curve_is_that_of_the_evaluations(run: Run):
    curve = ap_curve(run)
    assert curve is not None
    points = [tuple(map(float, point.split(","))) for point in curve.points]
    assert points == [(0, HEIGHT * 0.75), (pytest.approx(WIDTH / 3, abs=0.1), HEIGHT / 2), (WIDTH, 0)]
    assert (curve.first, curve.last, curve.best) == (10, 40, pytest.approx(40))
    assert f'points="{" ".join(curve.points)}"' in str(run._repr_html_())


def test_names_tags_and_notes_are_text_in_a_card(run: Run):
    note([run], f"{HOSTILE} <script>alert(2)</script>")
    tag([run], add=["<i>tag</i>"])
    shown = str(run._repr_html_())
    assert not re.search(r"<(img|script|i|b)\b", shown) and shown.count("</td>") == shown.count("<td ")
    assert "&lt;script&gt;" in shown and "&lt;i&gt;tag" in shown


def test_a_run_without_an_evaluation_and_one_that_cannot_be_read_have_a_card_too(tmp_path: Path):
    new = Run.create("new", {}, tmp_path)
    assert "not evaluated yet" in str(new._repr_html_()) and "svg" not in str(new._repr_html_())
    (tmp_path / "new" / "run.json").write_text("<b>{")
    assert "This run cannot be read" in str(new._repr_html_())


def test_a_run_is_opened_by_its_name(tmp_path: Path):
    shutil.copytree(ROOT / "tests" / "stored" / "saved" / "distilled", tmp_path / "mine")
    with runs_in(tmp_path):
        assert wb.Run("mine").info()["state"] == "done" and wb.Run("mine").path == tmp_path / "mine"
        assert wb.Run(str(tmp_path / "mine")).name == "mine"
        with pytest.raises(RunError, match=r"no run 'nothing' .* Runs there: mine"):
            wb.Run("nothing")


def test_completion_lists_what_is_meant_for_users(tmp_path: Path):
    assert dir(wb) == sorted(wb.__all__) and dir(wb.figures) == sorted(wb.figures.__all__)
    own = {
        name
        for name, value in vars(wb.figures).items()
        if getattr(value, "__module__", "") == "workbench.views.figures" and callable(value)
    }
    assert set(wb.figures.__all__) == own - {"or_says_why", "__dir__"}
    assert all(getattr(wb, name).__doc__ for name in wb.__all__)
