"""A teacher whose classes or boxes mean something else than the data's."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analysis.diagnosis.small_runs import TEACHER_ONLY, small_run
from tests.flows import teacher_copy
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Finding
from workbench.boxes import cxcywh_to_xyxy
from workbench.recipe.setup import Setup
from workbench.store.queries import read_queries
from workbench.store.run import Run

VAL = {"data": {"options": {"val": 32}}}


def only(run: Run) -> Finding:
    findings = diagnose(run).findings
    assert len(findings) == 1, findings
    return findings[0]


def with_teacher(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"teacher": {"checkpoint": str(teacher_copy(folder, **changes))}}


@pytest.fixture(scope="module")
def permuted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose teacher calls a circle a square and a square a circle; only read."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = with_teacher(folder, classes=["square", "circle", "triangle", "cross"])
    return small_run(folder, "permuted", TEACHER_ONLY, VAL, teacher, guarded=False)


def test_a_permuted_class_map_is_named_with_the_classes_that_moved(permuted: Run):
    finding = only(permuted)
    assert (finding.cause, finding.severity) == ("class map", "error")
    assert "circle is called square; square is called circle" in finding.statement and "triangle" not in finding.statement
    assert "square, circle, triangle, cross" in finding.advice


def test_a_cycle_of_three_classes_is_undone_by_the_order_that_is_proposed(tmp_path: Path):
    """Column k of the teacher is CLASSES[k]; what it calls square is a circle, what it calls triangle a square."""
    teacher = with_teacher(tmp_path, classes=["square", "triangle", "circle", "cross"])
    finding = only(small_run(tmp_path, "permuted", TEACHER_ONLY, VAL, teacher, guarded=False))
    assert "circle is called square; square is called triangle; triangle is called circle" in finding.statement
    # what the student's circle, square, triangle, cross get are the teacher's columns of these names
    assert finding.advice.endswith("circle, square, triangle, cross get from the teacher is triangle, circle, square, cross.")


def test_the_share_behind_a_class_map_agrees_with_a_count_by_hand(permuted: Run):
    rows = read_queries(permuted, "val", [-1], where="layer = 3")
    from workbench.analysis.of_run import open_data

    hits = seen = 0
    for record in open_data(permuted.info()).records:
        own = rows[(rows["image_id"] == record.image_id) & (rows["best_iou"] >= 0.5)]
        for target in np.flatnonzero(record.labels == 0):
            near = own[own["best_target"] == target]
            if len(near):
                best = near.loc[(near["score"] * near["best_iou"]).idxmax()]
                seen, hits = seen + 1, hits + (best["label"] == 1)
    circle = next(evidence for evidence in only(permuted).evidence if evidence.what.startswith("share of circle"))
    assert (circle.value, circle.n) == (pytest.approx(hits / seen), seen)
    assert circle.low is not None and circle.high is not None and 0.5 < circle.low < circle.value < circle.high


def corners(output: Any) -> Any:
    return dataclasses.replace(output, boxes=cxcywh_to_xyxy(output.boxes))


def axes(output: Any) -> Any:
    return dataclasses.replace(output, boxes=output.boxes[..., [1, 0, 3, 2]])


def top_left(output: Any) -> Any:
    boxes = output.boxes.clone()
    boxes[..., :2] -= boxes[..., 2:] / 2
    return dataclasses.replace(output, boxes=boxes)


@pytest.mark.parametrize(
    ("fault", "name"),
    [(corners, "x1, y1, x2, y2"), (axes, "centre y, centre x, height, width"), (top_left, "top left corner, width, height")],
)
def test_boxes_in_another_format_are_named_with_it(tmp_path: Path, fault: Any, name: str):
    def spoil(setup: Setup) -> None:
        assert setup.teacher is not None
        inner = setup.teacher.detector.forward
        setup.teacher.detector.forward = lambda *arguments: fault(inner(*arguments))

    finding = only(small_run(tmp_path, "boxes", TEACHER_ONLY, VAL, spoil=spoil, guarded=False))
    assert (finding.cause, finding.severity) == ("box format", "error")
    assert f"read as {name} they find" in finding.statement
    as_is, read = finding.evidence
    assert read.value > 0.5 > as_is.value
