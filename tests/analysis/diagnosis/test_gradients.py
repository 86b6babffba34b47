"""Terms that send too little into the student, or pull against the detection loss."""

import json
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import Tensor

from tests.analysis.diagnosis.small_runs import small_run
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput
from workbench.methods import registry
from workbench.methods.context import MethodContext
from workbench.methods.method import BaseMethodConfig, Method
from workbench.methods.registry import register
from workbench.store.run import Run


class ContraryConfig(BaseMethodConfig, frozen=True):
    method: Literal["contrary"] = "contrary"

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("scores",)


class Contrary(Method):
    """Lowers the scores of all queries that the targets ask to be raised."""

    name = "contrary"
    Config = ContraryConfig
    citation = "none"
    terms = "scores"

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        detection = context.student.losses(student, targets, context.training.num_boxes, context.student_match)
        return {"scores": -(detection["class"] + detection["giou"])}


@pytest.fixture(scope="module")
def contrary_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    register(Contrary)
    try:
        terms = {"logits_positive": 0.3, "logits_negative": 0.003, "features": 1.0}
        both = [{"method": "detrdistill", "balance": terms}, {"method": "contrary", "balance": 0.3}]
        yield small_run(tmp_path_factory.mktemp("runs"), "contrary", {"methods": both})
    finally:
        registry._registered.pop("contrary")


def test_a_term_with_less_than_a_hundredth_of_the_gradient_and_one_that_opposes_are_named_and_no_other(contrary_run: Run):
    found = {finding.cause: finding for finding in diagnose(contrary_run).findings}
    assert set(found) == {"weak term", "opposing term"}
    assert "detrdistill.logits_negative" in found["weak term"].statement
    assert "contrary.scores" in found["opposing term"].statement


def test_the_share_is_of_all_gradient_norms_by_hand(contrary_run: Run):
    lines = [line for line in contrary_run.metrics() if "share/contrary.scores" in line]
    total = [1 + sum(value for key, value in line.items() if key.startswith("share/")) for line in lines]
    shares = [line["share/detrdistill.logits_negative"] / norm for line, norm in zip(lines, total, strict=True)]
    evidence = next(finding for finding in diagnose(contrary_run).findings if finding.cause == "weak term").evidence[0]
    assert (evidence.value, evidence.n) == (pytest.approx(statistics.median(shares)), 6)
    # of six values the smallest and the largest hold the median between them with probability 1 - 2 / 2^6 = 0.97
    assert (evidence.low, evidence.high) == (pytest.approx(min(shares)), pytest.approx(max(shares)))


def test_a_term_that_is_switched_off_is_not_called_weak(tmp_path: Path):
    run = small_run(tmp_path, "off", {"train": {"steps": 10}})
    run.update_info(term_weights={**run.info()["term_weights"], "detrdistill.features": 0.0})
    assert "weak term" not in {finding.cause for finding in diagnose(run).findings}


@pytest.fixture(scope="module")
def drowned_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    loud = [{"method": "kd_detr", "general": 0, "balance": {"specific": 300.0}}]
    return small_run(tmp_path_factory.mktemp("runs"), "drowned", {"methods": loud})


def detection_loss(run: Run) -> dict[int, float]:
    """Of every logged step: what is minimised, less the weighted term."""
    return {line["step"]: line["loss"] - line.get("weighted/kd_detr.specific", 0.0) for line in run.metrics()}


@contextmanager
def written(path: Path, lines: list[dict[str, Any]]) -> Iterator[None]:
    """The file holds these lines while the block runs."""
    before = path.read_text()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        yield
    finally:
        path.write_text(before)


def outcome_of_drowning(run: Run, baseline: Run) -> str:
    return {check.cause: check.outcome for check in diagnose(run, baseline).checks}["drowning term"]


def test_a_term_that_leaves_the_detection_loss_where_it_was_is_named_with_what_is_lost(drowned_run: Run, healthy_runs: list[Run]):
    found = {finding.cause: finding for finding in diagnose(drowned_run, healthy_runs[0]).findings}["drowning term"]
    assert found.severity == "error" and "kd_detr.specific" in found.statement and "balance: {specific: 1.0}" in found.advice
    numbers = {evidence.what.partition(" of ")[0]: evidence for evidence in found.evidence}
    shares = [line["share/kd_detr.specific"] for line in drowned_run.metrics() if "share/kd_detr.specific" in line]
    assert found.evidence[0].value == pytest.approx(statistics.median(shares)) and found.evidence[0].low > 4
    own, other = detection_loss(drowned_run), detection_loss(healthy_runs[0])
    late = range(41, 61)
    fall = statistics.mean(other[step] for step in range(1, 7)) - statistics.mean(other[step] for step in late)
    lost = statistics.mean((own[step] - other[step]) / fall for step in late)
    assert numbers["share"].value == pytest.approx(lost) and numbers["share"].low > 0.1


def test_a_large_gradient_is_not_judged_without_an_undistilled_run_beside_it(drowned_run: Run):
    check = {check.cause: check for check in diagnose(drowned_run).checks}["drowning term"]
    assert check.outcome == "not judged" and "--against" in check.why


def test_a_large_gradient_under_which_the_detection_loss_falls_as_the_baselines_is_no_cause(drowned_run: Run, healthy_runs: list[Run]):
    other = detection_loss(healthy_runs[0])
    lines = [{**line, "loss": other[line["step"]] + line["weighted/kd_detr.specific"]} for line in drowned_run.metrics()]
    drowned_run.update_info(logs={})  # the log is written by hand, so it has no hash
    with written(drowned_run.metrics_path, lines):
        assert outcome_of_drowning(drowned_run, healthy_runs[0]) == "clear"


def test_a_baseline_of_another_length_has_another_learning_rate_and_is_not_compared(drowned_run: Run, healthy_runs: list[Run]):
    info = healthy_runs[0].info()
    healthy_runs[0].update_info(recipe={**info["recipe"], "train": {**info["recipe"]["train"], "steps": 30}})
    try:
        check = {check.cause: check for check in diagnose(drowned_run, healthy_runs[0]).checks}["drowning term"]
    finally:
        healthy_runs[0].update_info(recipe=info["recipe"])
    assert check.outcome == "not judged" and "30 steps" in check.why


def test_a_student_that_is_better_than_its_baseline_is_not_drowned(drowned_run: Run, healthy_runs: list[Run]):
    lines = [{**line, "coco": {**line["coco"], "ap": 0.9}} for line in drowned_run.evaluations()]
    drowned_run.update_info(logs={})
    with written(drowned_run.evaluations_path, lines):
        assert outcome_of_drowning(drowned_run, healthy_runs[0]) == "clear"
