"""Nothing is found where nothing is wrong, and a run that cannot be judged is not."""

import json
import shutil
from pathlib import Path

import pytest

from tests.analysis.diagnosis.small_runs import TEACHER_ONLY, small_run
from workbench.analysis.diagnosis.diagnose import CAUSES, MEANINGS, diagnose
from workbench.analysis.diagnosis.findings import Diagnosis
from workbench.store.run import Run


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one step; only read."""
    return small_run(tmp_path_factory.mktemp("runs"), "short", TEACHER_ONLY)


def outcomes(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.cause: check.outcome for check in diagnosis.checks}


def test_three_healthy_runs_stay_silent_alone_and_against_the_undistilled_one(healthy_runs: list[Run]):
    undistilled, *distilled = healthy_runs
    for run in healthy_runs:
        assert diagnose(run).findings == ()
    for run in distilled:
        diagnosis = diagnose(run, undistilled)
        assert (diagnosis.findings, diagnosis.baseline) == ((), "undistilled")


def test_of_a_distilled_run_every_cause_but_those_that_need_more_is_judged(healthy_runs: list[Run]):
    _, run, _ = healthy_runs
    assert list(outcomes(diagnose(run))) == list(CAUSES)
    assert {cause for cause, outcome in outcomes(diagnose(run)).items() if outcome == "not judged"} == set()


def test_causes_of_distillation_are_not_judged_in_a_run_without_one(healthy_runs: list[Run]):
    checks = {check.cause: check for check in diagnose(healthy_runs[0]).checks}
    assert checks["weak term"].why == checks["opposing term"].why == "the run is not distilled"


def test_a_run_too_short_to_be_judged_raises_no_alarm_and_says_what_it_lacks(short_run: Run):
    diagnosis = diagnose(short_run)
    assert diagnosis.findings == ()
    assert outcomes(diagnosis)["weak term"] == "not judged"


@pytest.mark.parametrize("missing", ["queries", "metrics.jsonl"])
def test_a_run_with_files_missing_is_diagnosed_by_those_that_are_there(short_run: Run, tmp_path: Path, missing: str):
    run = Run(Path(shutil.copytree(short_run.path, tmp_path / "broken")))
    (run.path / missing).rename(tmp_path / "away")
    assert diagnose(run).findings == ()


def test_a_diagnosis_is_json_without_nan(healthy_runs: list[Run]):
    values = diagnose(healthy_runs[1], healthy_runs[0]).to_json()
    again = json.loads(json.dumps(values, allow_nan=False))
    assert again["run"] == "detrdistill"
    assert Diagnosis.from_json(again).to_json() == values


def test_every_cause_is_explained():
    assert list(MEANINGS) == list(CAUSES)
    assert len(set(MEANINGS.values())) == len(MEANINGS)
