"""Gathers what is recorded of a run's methods: queries they select, masks they compute, queries they send to the student."""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from workbench.detectors.output import DetectorOutput, Level, QueryOutput
from workbench.methods.context import MethodContext
from workbench.methods.method import Method
from workbench.methods.query_masks import QueryMask, visible_masks


def selection_of(methods: Sequence[Method], teacher: DetectorOutput, context: MethodContext) -> Tensor | None:
    """Returns ``[L_T, B, N_T]`` bool of the first method that chooses among the teacher's queries; None if none does."""
    return next((found for method in methods if (found := method.selected(teacher, context)) is not None), None)


def drawing_method(methods: Sequence[Method]) -> Method | None:
    """Returns the first method that weights features with masks; None if none does."""
    return next((method for method in methods if method.mask_layers), None)


def recorded_masks(
    method: Method | None, teacher: DetectorOutput, layers: list[int], context: MethodContext, selected: Tensor | None
) -> list[tuple[Level, Tensor]]:
    """Computes the masks of a batch: those of ``method``, or the paper's for comparison if no method has any.

    The arguments are those of ``Method.masks``. A teacher without queries has no masks unless ``method`` makes some.
    """
    if method is not None:
        return method.masks(teacher, layers, context, selected)
    return visible_masks(QueryMask(), teacher, layers, context, selected) if isinstance(teacher, QueryOutput) else []


def recorded_student_masks(method: Method | None, student: DetectorOutput, context: MethodContext) -> list[tuple[Level, Tensor]]:
    """Computes the masks of all layers of the student for a batch: those of ``method``, or the paper's for comparison if it is None."""
    layers = list(range(student.logits.shape[0]))
    # the masks are made as the teacher's are, by functions that rename a teacher's classes; the student's need no renaming
    own = MethodContext(student=context.student, pairing=dataclasses.replace(context.pairing, class_map=None), targets=context.targets)
    if method is not None:
        return method.student_masks(student, layers, own)
    return visible_masks(QueryMask(), student, layers, own) if isinstance(student, QueryOutput) else []


def sending_method(methods: Sequence[Method]) -> Method | None:
    """Returns the first method that sends the teacher's queries through the student's decoder; None if none does."""
    return next((method for method in methods if method.sends_queries), None)
