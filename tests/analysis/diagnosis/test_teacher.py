"""A teacher that is worse than the student, everywhere or on some targets."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.analysis.diagnosis.small_runs import TEACHER_ONLY, small_run
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Diagnosis, Finding
from workbench.analysis.of_run import open_data
from workbench.recipe.setup import Setup
from workbench.store.queries import read_queries
from workbench.store.run import Run

# the student is the embedded teacher itself, hardly moved by one step
GOOD: dict[str, Any] = {"train": {"learning_rate": 1e-7, "warmup": 0}, "data": {"options": {"val": 40}}, "methods": []}
CLASSES = ["circle", "square", "triangle", "cross"]


@pytest.fixture(scope="module")
def spoiled_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose teacher hardly ever says square; only read."""

    def spoil(setup: Setup) -> None:
        assert setup.teacher is not None
        inner = setup.teacher.detector.forward

        def forward(*arguments: Any) -> Any:
            output = inner(*arguments)
            output.logits[..., CLASSES.index("square")] -= 4.0
            return output

        setup.teacher.detector.forward = forward

    return small_run(tmp_path_factory.mktemp("runs"), "spoiled", GOOD, TEACHER_ONLY, spoil=spoil, student="shapes_teacher")


def found(run: Run, baseline: Run | None = None) -> list[Finding]:
    return [finding for finding in diagnose(run, baseline).findings if finding.cause == "teacher worse"]


def ap_by_pycocotools(run: Run, model: str, step: int, name: str) -> float:
    """AP of a class when every query says its best class."""
    data = open_data(run.info())
    records = {record.image_id: record for record in data.records}
    rows = []
    for row in read_queries(run, "val", [step], where=f"model = '{model}' and layer = 3").to_dict("records"):
        record = records[row["image_id"]]
        x, y, w, h = (row[key] for key in ("cx", "cy", "w", "h"))
        box = [max(x - w / 2, 0) * record.width, max(y - h / 2, 0) * record.height, min(x + w / 2, 1) * record.width,
               min(y + h / 2, 1) * record.height]  # fmt: skip
        rows.append({"image_id": row["image_id"], "category_id": data.category_ids[row["label"]], "score": row["score"],
                     **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))})  # fmt: skip
    return coco_ap(data.coco(), pd.DataFrame(rows), backend="pycocotools").per_class[name].ap


def test_a_teacher_worse_on_one_class_is_named_with_it_and_the_difference_in_ap(spoiled_run: Run):
    (finding,) = found(spoiled_run)
    assert finding.severity == "warning" or "all targets" in finding.statement
    assert "class square" in finding.statement
    assert not any(f"class {name}" in finding.statement for name in ("circle", "triangle", "cross"))
    evidence = next(evidence for evidence in finding.evidence if evidence.what.endswith("class square"))
    difference = ap_by_pycocotools(spoiled_run, "teacher", -1, "square") - ap_by_pycocotools(spoiled_run, "student", 1, "square")
    assert evidence.value == pytest.approx(100 * difference, abs=1e-2)  # in points, as AP is shown everywhere
    assert evidence.low is not None and evidence.high is not None and evidence.low < evidence.value < evidence.high < 0
    assert evidence.n == sum(int((record.labels == 1).sum()) for record in open_data(spoiled_run.info()).records)


def test_a_measured_ap_is_in_points_with_its_interval_as_the_evidence_of_its_finding_is(spoiled_run: Run):
    diagnosis = diagnose(spoiled_run)
    (check,) = [check for check in diagnosis.checks if check.cause == "teacher worse"]
    behind = {evidence.what: evidence for finding in diagnosis.findings for evidence in finding.evidence}
    assert check.measures and all(measure.points for measure in check.measures)
    for measure in check.measures:
        if measure.is_beyond:
            evidence = behind[measure.what]
            assert (measure.value, measure.low, measure.high) == pytest.approx((evidence.value, evidence.low, evidence.high))
    assert any(measure.is_beyond and measure.value < -1 for measure in check.measures)
    assert Diagnosis.from_json(diagnosis.to_json()).checks == diagnosis.checks


def test_a_teacher_worse_on_every_class_is_an_error(tmp_path: Path):
    def spoil(setup: Setup) -> None:
        assert setup.teacher is not None
        inner = setup.teacher.detector.forward

        def forward(*arguments: Any) -> Any:
            output = inner(*arguments)
            output.boxes[..., 2:] *= 0.6
            return output

        setup.teacher.detector.forward = forward

    (finding,) = found(small_run(tmp_path, "spoiled", GOOD, TEACHER_ONLY, spoil=spoil, student="shapes_teacher"))
    assert finding.severity == "error" and finding.statement.startswith("The teacher is worse than the student: all targets ")


def test_a_teacher_equal_to_the_student_is_not_worse(tmp_path: Path):
    assert found(small_run(tmp_path, "equal", GOOD, TEACHER_ONLY, student="shapes_teacher")) == []


def test_against_a_baseline_it_is_the_baselines_student_that_the_teacher_is_compared_with(spoiled_run: Run, tmp_path: Path):
    # the baseline is a student of sixty steps, which even the spoiled teacher beats, on the same images
    weak = small_run(tmp_path, "weak", GOOD, TEACHER_ONLY)
    assert found(spoiled_run, weak) == []
