"""Saved views: questions about a comparison, each a filter on what the boxes say of themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fiftyone import ViewExpression
from fiftyone import ViewField as F

from workbench.analysis.detection.tide import LABELS
from workbench.analysis.report.inspection import CONFIDENT, WRONG, Inspection
from workbench.views.fiftyone.connection import FoDataset

UNSTABLE = 0.5  # stability up to which a target is unstable: its query changed at every second evaluation
HIGH_QUALITY = 0.5


@dataclass(frozen=True)
class Question:
    """One saved view.

    Attributes:
        name: as the App lists it.
        meaning: what is shown, in one sentence.
        field: the boxes that are filtered.
        needs: fields and attributes without which it cannot be asked.
        condition: what is kept of ``field``.
        patches: whether every box is shown as a picture of its own.
    """

    name: str
    meaning: str
    field: str
    needs: tuple[str, ...]
    condition: Callable[[], ViewExpression]
    patches: bool = False


QUESTIONS: tuple[Question, ...] = (
    Question(
        "student lost what the teacher found", "Targets that the teacher finds (IoU 0.5, right class) and the student does not.",
        "targets", ("targets.teacher_error", "targets.student_error"),
        lambda: (F("teacher_error") == "found") & F("student_error").is_in(["missed", "classification", "localisation"]),
    ),
    Question(
        "teacher was wrong and the student followed",
        f"Wrong boxes of the student whose mate is wrong with the same class, both with a score of at least {CONFIDENT}.",
        "student", ("student.followed",), lambda: F("followed") == True,  # noqa: E712 - becomes a query of the database
    ),
    Question(
        "unstable targets", f"Targets whose query changed at {1 - UNSTABLE:.0%} of the evaluations or more.",
        "targets", ("targets.student_stability",),
        # what is null would count as smaller than any number
        lambda: (F("student_stability") >= 0) & (F("student_stability") <= UNSTABLE),
    ),
    Question(
        "high-quality queries without gain",
        f"Teacher queries with a quality of at least {HIGH_QUALITY} whose target the student answers no better than the baseline does.",
        "teacher", ("teacher.gain",), lambda: (F("quality") >= HIGH_QUALITY) & (F("gain") >= -1) & (F("gain") <= 0),
    ),
    *(
        Question(f"errors of the student: {LABELS[kind]}", f"Boxes of the student with the error type {kind}.",
                 "student", ("student.error",), lambda kind=kind: F("error") == kind)
        for kind in WRONG
    ),
    Question(
        "errors of the student: missed targets", "Targets that no box of the student is about.",
        "targets", ("targets.student_error",), lambda: F("student_error") == "missed",
    ),
    Question(
        "new false positives after distillation",
        f"Wrong boxes of the student with a score of at least {CONFIDENT} where the baseline has no such box of that class (IoU 0.5).",
        "student", ("student.new",), lambda: F("new") == True,  # noqa: E712
    ),
    Question(
        "best queries of the teacher", "The hundred matched queries of the highest quality.",
        "teacher", ("teacher.grade",), lambda: F("grade") == "best", patches=True,
    ),
    Question(
        "worst queries of the teacher", "The hundred matched queries of the lowest quality.",
        "teacher", ("teacher.grade",), lambda: F("grade") == "worst", patches=True,
    ),
    Question(
        "disagreement between layers", "Targets that the student's decoder layers give to different queries.",
        "targets", ("targets.student_layer_changes",), lambda: F("student_layer_changes") > 0,
    ),
)  # fmt: skip


def save_views(dataset: FoDataset, inspection: Inspection) -> list[str]:
    """Saves every view that can be asked of the dataset under its name and removes those that no longer can; returns the names."""
    there = set(dataset.get_field_schema(flat=True))
    asked = [q for q in QUESTIONS if all(need.replace(".", ".detections.", 1) in there for need in q.needs)]
    for question in QUESTIONS:
        if dataset.has_saved_view(question.name) and question not in asked:
            dataset.delete_saved_view(question.name)
    for question in asked:
        dataset.save_view(question.name, ask(dataset, question), description=question.meaning, overwrite=True)
    return [question.name for question in asked]


def ask(dataset: FoDataset, question: Question) -> Any:
    """The view of a question: the images with boxes that answer it and only these boxes of their field, or the boxes as patches."""
    view = dataset.filter_labels(question.field, question.condition())
    return view.to_patches(question.field) if question.patches else view


def count(dataset: FoDataset, question: Question) -> int:
    """How many boxes answer it."""
    return int(dataset.filter_labels(question.field, question.condition()).count(f"{question.field}.detections"))
