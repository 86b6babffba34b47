"""Matching that does not settle."""

from typing import Any

import pytest

from tests.analysis.diagnosis.small_runs import small_run
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Finding
from workbench.analysis.of_run import all_evaluations
from workbench.analysis.results.of_runs import Results
from workbench.analysis.stability.change_causes import CAUSES
from workbench.analysis.stability.churn import NEEDED, churn_over_steps
from workbench.store.queries import read_queries
from workbench.store.run import Run

# a trained student, thrown about by a rate far too high to the end
WILD: dict[str, Any] = {
    "methods": [], "data": {"options": {"val": 48}},
    "train": {"steps": 40, "evaluate_every": 8, "learning_rate": 0.01, "schedule": "constant", "warmup": 0, "clip_norm": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def wild_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("runs"), "wild", WILD, student="shapes_teacher")


def found(run: Run, baseline: Run | None = None) -> list[Finding]:
    return [finding for finding in diagnose(run, baseline).findings if finding.cause == "unsettled matching"]


def test_a_rate_far_too_high_to_the_end_keeps_the_matching_moving(wild_run: Run):
    (finding,) = found(wild_run)
    late, early = finding.evidence[:2]
    assert late.low is not None and late.low > 0.1 and late.value > 0.8 * early.value


def test_early_and_late_churn_are_those_of_the_stability_of_the_run(wild_run: Run):
    frame = churn_over_steps(read_queries(wild_run, "val", columns=[*NEEDED])).dropna(subset=["churn"])
    (finding,) = found(wild_run)
    late, early = finding.evidence[:2]
    # four pairs of evaluations: a third is one
    assert (early.value, late.value) == (pytest.approx(frame["churn"].iloc[0]), pytest.approx(frame["churn"].iloc[-1]))


def test_a_run_in_progress_is_not_judged(wild_run: Run):
    before = wild_run.info()["state"]
    wild_run.update_info(state="running")
    outcomes = {check.cause: check.outcome for check in diagnose(wild_run).checks}
    wild_run.update_info(state=before)
    assert outcomes["unsettled matching"] == "not judged"


def test_the_finding_names_the_cause_of_most_late_changes(wild_run: Run):
    split = all_evaluations(wild_run, "val")
    changes = Results().explained_changes(split)
    late = changes[(changes["step"] == changes["step"].max()) & changes["changed"]]
    (finding,) = found(wild_run)
    shares = {one.what.removeprefix("share of the late changes: "): one.value for one in finding.evidence[2:]}
    assert shares == pytest.approx({name: (late["cause"] == cause).mean() for cause, name in CAUSES.items()})
    most = max(shares, key=lambda name: shares[name])
    assert finding.statement.endswith(f" The cause of most late changes: {most} ({100 * shares[most]:.0f} %).")
