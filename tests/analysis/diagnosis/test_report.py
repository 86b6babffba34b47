"""One page and one file of numbers about runs, which need nothing else."""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.run_examples import finished_run
from tests.flows import command
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.of_run import open_data
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.report.one_run import QUERIES
from workbench.analysis.rows_of_run import matched_rows
from workbench.analysis.stability.churn import agreement, churn_over_steps
from workbench.files import read_json
from workbench.store.queries import read_queries
from workbench.store.run import Run

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


def test_stability_gain_and_slots_are_those_of_the_analysis(numbers: tuple[dict[str, Any], str], healthy_runs: list[Run]):
    found, page = numbers
    undistilled, distilled = (matched_rows(run, "val", QUERIES) for run in healthy_runs[:2])
    targets = target_frame(open_data(healthy_runs[0].info()).coco())
    own = found["stability"]["detrdistill"]
    names = open_data(healthy_runs[1].info()).classes
    for row in own["by_label"]:
        own_targets = targets.loc[targets["label"] == names.index(row["label"]), ["image_id", "target"]]
        rows = churn_over_steps(distilled.merge(own_targets, left_on=["image_id", "match"], right_on=["image_id", "target"]))
        rows = rows[rows["n"] > 0]
        assert (row["churn"], row["n"]) == (pytest.approx((rows["churn"] * rows["n"]).sum() / rows["n"].sum()), rows["n"].sum())
    steps = churn_over_steps(distilled)
    assert [row["churn"] for row in own["steps"]] == pytest.approx(steps["churn"].dropna().tolist())
    last = agreement(distilled).sort_values(["step", "layer"]).iloc[-1]
    assert own["agreement"]["steps"][-1]["agreement"] == pytest.approx(last["agreement"]) and own["teacher"]
    gains = target_gain(distilled, undistilled)
    gain = found["gain"]["detrdistill"]
    assert (gain["baseline"], gain["step"], len(found["gain"])) == ("undistilled", 60, 1)
    assert (gain["mean"][0]["gain"], gain["mean"][0]["n"]) == (pytest.approx(gains["gain"].mean()), len(gains))
    assert {row["label"] for row in gain["by_label"]} <= set(names) and gain["correlations"][0]["property"] == "quality"
    rows = read_queries(healthy_runs[1], "val", [60], where="model = 'student' and layer = 1")
    held = rows[rows["match"] >= 0]["query"].nunique()
    assert found["slots"]["detrdistill"]["dead"] == rows["query"].nunique() - held
    for heading in ("Match stability", "Gain", "Query value", "Errors", "Diagnosis", "Verdicts"):
        assert re.search(rf"<h2[^>]*>{heading}</h2>", page), heading


def test_the_page_has_a_row_for_every_verdict_and_the_numbers_a_sentence_that_names_it(numbers: tuple[dict[str, Any], str]):
    found, page = numbers
    (comparison,) = found["comparisons"]
    names = [verdict["quantity"] for verdict in comparison["verdicts"]]
    assert {"AP", "AP50", "calibration error", "churn", "instability", "agreement", "quality", "score x IoU"} <= set(names)
    for row in (*comparison["verdicts"], *comparison["errors"]):
        assert "these checkpoints" in row["sentence"]
        assert any(word in row["sentence"] for word in ("better", "worse", "not distinguishable"))
    chapter = page[page.index('id="verdicts"') : page.index('id="diagnosis"')]
    rows = ["".join(re.findall(r">([^<]*)<", row)) for row in re.findall(r"<tr>.*?</tr>", chapter, re.DOTALL)]
    for row in comparison["verdicts"]:
        assert any(escape(row["quantity"]) in text and row["verdict"] in text for text in rows), row["sentence"]


def test_the_page_holds_no_script_of_plotly_and_asks_no_other_address(numbers: tuple[dict[str, Any], str]):
    _, page = numbers
    assert "plotly" not in page.casefold()
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
