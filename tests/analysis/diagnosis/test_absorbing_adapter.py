"""An adapter that learns what the student should."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from torch import Tensor, nn

from tests.analysis.diagnosis.small_runs import small_run
from workbench.analysis.diagnosis.absorbing_adapter import _alignment
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import NotJudged
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput
from workbench.methods import registry
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.method import BaseMethodConfig, Method
from workbench.methods.registry import register
from workbench.store.run import Run


class DeepConfig(BaseMethodConfig, frozen=True):
    method: Literal["deep"] = "deep"
    feature: Literal["memory"] = "memory"

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("features",)


class Deep(Method):
    """Mean squared error of memory after an adapter of three layers that could learn anything."""

    name = "deep"
    Config = DeepConfig
    citation = "none"
    terms = "features"

    def __init__(self, config: DeepConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        own, other = (next(iter(model.level_channels("memory").values())) for model in (student, teacher))
        self.adaptor = nn.Sequential(
            nn.Conv2d(own, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, other, 1)
        )
        nn.init.constant_(self.adaptor[-1].bias, 1.0)  # far off to begin with, and quickly mended

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        return {"features": (self.adaptor(student.memory[0].features) - teacher.memory[0].features).square().mean()}


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    register(Deep)
    try:
        yield small_run(tmp_path_factory.mktemp("runs"), "deep", {"methods": [{"method": "deep", "balance": 0.01}]})
    finally:
        registry._registered.pop("deep")


def test_a_deep_adapter_that_leaves_the_student_where_it_was_is_named_against_the_undistilled_run(deep_run: Run, healthy_runs: list[Run]):
    (finding,) = (finding for finding in diagnose(deep_run, healthy_runs[0]).findings if finding.cause == "absorbing adapter")
    assert "deep.features" in finding.statement
    fall, end, _ = finding.evidence
    raw = [line["raw/deep.features"] for line in deep_run.metrics()]
    assert fall.value == pytest.approx(1 - sum(raw[-3:]) / sum(raw[:3])) and fall.value > 0.5
    assert end.value == deep_run.evaluations()[-2]["alignment"]["memory"]["8"]["value"]


def test_a_run_of_an_older_version_without_alignment_is_not_judged(deep_run: Run):
    deep_run.update_info(logs={})  # the log is written by hand, so it has no hash
    lines, info = deep_run.evaluations_path.read_text(), deep_run.info()
    deep_run.evaluations_path.write_text("")
    checks = {check.cause: check for check in diagnose(deep_run).checks}
    deep_run.evaluations_path.write_text(lines)
    assert checks["absorbing adapter"].outcome == "not judged" and "older version" in checks["absorbing adapter"].why
    assert info == deep_run.info()


@pytest.mark.parametrize(("feature", "kinds", "read"), [
    ("auto", ("memory", "neck", "backbone"), "memory"), ("auto", ("neck", "backbone"), "neck"),
    # a detector with queries and one without
    ("auto", ("head", "neck", "backbone"), "head"), ("head", ("head", "neck"), "head"), ("neck", ("head", "neck"), "neck"),
    # of two detectors of one kind, what the head reads has been measured under its own name
    ("head", ("memory", "neck"), "memory"), ("head", ("neck", "backbone"), "neck"),
])  # fmt: skip
def test_the_alignment_is_read_at_the_levels_that_the_term_compares(feature: str, kinds: tuple[str, ...], read: str):
    values = {kind: {"8": {"value": index / 10, "low": 0.0, "high": 1.0, "without": [0.1, 0.2]}} for index, kind in enumerate(kinds)}
    material: Any = SimpleNamespace(run=SimpleNamespace(evaluations=lambda: [{"alignment": values}]), info={})
    assert _alignment(material, feature, "end").estimate.value == values[read]["8"]["value"]


def test_levels_that_were_not_measured_are_named():
    measured = {"neck": {"8": {"value": 0.5, "low": 0.0, "high": 1.0, "without": [0.1, 0.2]}}}
    material: Any = SimpleNamespace(run=SimpleNamespace(evaluations=lambda: [{"alignment": measured}]), info={})
    with pytest.raises(NotJudged, match="no memory levels with the same stride"):
        _alignment(material, "memory", "end")
