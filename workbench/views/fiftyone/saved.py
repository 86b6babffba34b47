"""Defines saved views: questions about a comparison, each a filter on attributes of the boxes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fiftyone import ViewExpression
from fiftyone import ViewField as F

from workbench.analysis.detection.lost import LEAST_SCORE
from workbench.analysis.detection.tide import LABELS
from workbench.analysis.report.inspection import CONFIDENT, WRONG, Inspection
from workbench.views.fiftyone.connection import FoDataset

UNSTABLE = 0.5  # largest stability of an unstable target: its query changed at every second evaluation
HIGH_QUALITY = 0.5


@dataclass(frozen=True)
class Question:
    """Describes one saved view.

    Attributes:
        name: name in the App's list.
        meaning: one sentence on what is shown.
        field: field whose boxes are filtered.
        needs: fields and attributes that the view needs.
        condition: returns the condition on the boxes of ``field``.
        patches: True to show every box as a picture of its own.
    """

    name: str
    meaning: str
    field: str
    needs: tuple[str, ...]
    condition: Callable[[], ViewExpression]
    patches: bool = False


QUESTIONS: tuple[Question, ...] = (
    Question(
        "student lost what the teacher found",
        f"Targets that the teacher finds (right class, IoU 0.5 or more, score {LEAST_SCORE} or more) and the student does not.",
        "targets", ("targets.student_against_teacher",), lambda: F("student_against_teacher") == "lost",
    ),
    Question(
        "teacher was wrong and the student followed",
        f"Wrong boxes of the student whose paired teacher query is wrong with the same class, both with a score of {CONFIDENT} or more.",
        "student", ("student.followed",), lambda: F("followed") == True,  # noqa: E712 - becomes a query of the database
    ),
    Question(
        "unstable targets", f"Targets whose query changed at {1 - UNSTABLE:.0%} or more of the evaluations.",
        "targets", ("targets.student_stability",),
        # null compares as smaller than any number
        lambda: (F("student_stability") >= 0) & (F("student_stability") <= UNSTABLE),
    ),
    Question(
        "high-quality queries without gain",
        f"Teacher queries with a quality of {HIGH_QUALITY} or more whose target the student detects no better than the baseline does.",
        "teacher", ("teacher.gain",), lambda: (F("quality") >= HIGH_QUALITY) & (F("gain") >= -1) & (F("gain") <= 0),
    ),
    *(
        Question(f"errors of the student: {LABELS[kind]}", f"Boxes of the student with the error type {kind}.",
                 "student", ("student.error",), lambda kind=kind: F("error") == kind)
        for kind in WRONG
    ),
    Question(
        "errors of the student: missed targets", "Targets that the student does not detect and that none of its errors is about.",
        "targets", ("targets.student_error",), lambda: F("student_error") == "missed",
    ),
    Question(
        "new false positives after distillation",
        f"Wrong boxes of the student with a score of {CONFIDENT} or more where the baseline has no such box of that class (IoU 0.5).",
        "student", ("student.new",), lambda: F("new") == True,  # noqa: E712
    ),
    Question(
        "best queries of the teacher", "The hundred matched teacher queries with the highest quality.",
        "teacher", ("teacher.grade",), lambda: F("grade") == "best", patches=True,
    ),
    Question(
        "worst queries of the teacher", "The hundred matched teacher queries with the lowest quality.",
        "teacher", ("teacher.grade",), lambda: F("grade") == "worst", patches=True,
    ),
    Question(
        "disagreement between layers", "Targets whose query differs between decoder layers of the student.",
        "targets", ("targets.student_layer_changes",), lambda: F("student_layer_changes") > 0,
    ),
)  # fmt: skip


def save_views(dataset: FoDataset, inspection: Inspection) -> list[str]:
    """Saves every view that the dataset supports under its name, removes those that it no longer supports, and returns the names."""
    there = set(dataset.get_field_schema(flat=True))
    asked = [q for q in QUESTIONS if all(need.replace(".", ".detections.", 1) in there for need in q.needs)]
    for question in QUESTIONS:
        if dataset.has_saved_view(question.name) and question not in asked:
            dataset.delete_saved_view(question.name)
    for question in asked:
        dataset.save_view(question.name, ask(dataset, question), description=question.meaning, overwrite=True)
    return [question.name for question in asked]


def ask(dataset: FoDataset, question: Question) -> Any:
    """Returns the view of a question: images with the matching boxes only, or the boxes as patches."""
    view = dataset.filter_labels(question.field, question.condition())
    return view.to_patches(question.field) if question.patches else view


def count(dataset: FoDataset, question: Question) -> int:
    """Returns the number of boxes that match a question."""
    return int(dataset.filter_labels(question.field, question.condition()).count(f"{question.field}.detections"))
