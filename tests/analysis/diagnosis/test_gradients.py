"""Terms that send too little into the student, or pull against the detection loss."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from torch import Tensor

from tests.analysis.diagnosis.small_runs import small_run
from workbench.analysis.diagnosis import diagnose
from workbench.detectors.output import DetectorOutput
from workbench.matching import TargetBatch
from workbench.methods import METHODS, MethodContext, register
from workbench.methods.base import BaseMethodConfig, Method
from workbench.runs import Run


class ContraryConfig(BaseMethodConfig, frozen=True):
    method: Literal["contrary"] = "contrary"

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("scores",)


class Contrary(Method):
    """Lowers the scores of all queries that the targets ask to be raised."""

    name = "contrary"
    Config = ContraryConfig
    source = "none"
    terms = "scores"

    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext
    ) -> dict[str, Tensor]:
        detection = context.student.losses(student, targets, context.num_boxes, context.student_match)
        return {"scores": -(detection["class"] + detection["giou"])}


@pytest.fixture(scope="module")
def contrary_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    register(Contrary)
    try:
        terms = {"logits_positive": 0.3, "logits_negative": 0.003, "features": 1.0}
        both = [{"method": "detrdistill", "balance": terms}, {"method": "contrary", "balance": 0.3}]
        yield small_run(tmp_path_factory.mktemp("runs"), "contrary", {"methods": both})
    finally:
        del METHODS["contrary"]


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
