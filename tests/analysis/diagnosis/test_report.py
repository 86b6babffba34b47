"""One page and one file of numbers about runs, which need nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.run_examples import finished_run
from tests.flows import command
from workbench.analysis.diagnosis import diagnose
from workbench.files import read_json
from workbench.runs import Run

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def numbers(healthy_runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    out = tmp_path_factory.mktemp("report") / "page.html"
    root = str(healthy_runs[0].path.parent)
    code, said, _ = command("report", "undistilled", "detrdistill", "--runs", root, "--out", str(out))
    assert code == 0 and str(out) in said
    return read_json(out.with_suffix(".json")), out.read_text()


def test_the_numbers_are_those_of_the_files_of_the_runs(numbers: tuple[dict[str, Any], str], healthy_runs: list[Run]):
    found, _ = numbers
    tested = {run.name: run.evaluations()[-1] for run in healthy_runs[:2]}
    rows = {row["run"]: row for row in found["runs"] if row["arm"] != "teacher"}
    assert {name: rows[name]["ap"] for name in tested} == {name: pytest.approx(line["coco"]["ap"]) for name, line in tested.items()}
    assert found["diagnoses"]["undistilled"] == diagnose(healthy_runs[0]).to_json()
    assert set(found["errors"]) == set(found["slots"]) == set(tested)


def test_the_page_holds_plotly_once_and_asks_no_other_address(numbers: tuple[dict[str, Any], str]):
    _, page = numbers
    assert page.count("plotly.js v") == 1
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="[^"]*"', page) == []


def test_one_run_without_its_data_is_still_reported_and_names_from_data_stay_text(tmp_path: Path, runs_folder: Path):
    run, _ = finished_run("alone", arm=HOSTILE)
    run.update_info(teacher=HOSTILE, classes=[HOSTILE])
    out = tmp_path / "page.html"
    assert command("report", "alone", "--out", str(out))[0] == 0
    page = out.read_text()
    assert HOSTILE not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    found = read_json(out.with_suffix(".json"))
    assert found["notes"] and json.dumps(found, allow_nan=False)
