"""Computes query-prior assignment distillation (DETRDistill, equation 10): teacher queries as an extra group in the student."""

from dataclasses import replace

import torch
from torch import Tensor

from workbench.detectors.output import Queries, QueryOutput
from workbench.methods.context import MethodContext
from workbench.methods.detrdistill.config import AssignmentConfig
from workbench.methods.extra_group import TeacherQueries
from workbench.methods.method import gather_queries

CERTAIN = 30.0


def assignment_term(
    config: AssignmentConfig,
    group: TeacherQueries,
    layers: list[int],
    student: QueryOutput,
    teacher: QueryOutput,
    selected: Tensor,
    context: MethodContext,
) -> Tensor:
    """Computes the family's whole set loss of the group, with its published weights, on every layer.

    The group goes through the decoder separately. Neither group sees the other, and the student's own outputs do not change.

    Args:
        config: switches of the assignment part.
        group: module that converts the teacher's queries for the student.
        layers: for each of the ``L_S`` student layers, the teacher layer whose matching trains it.
        student: output whose memory is read.
        teacher: output whose queries are used.
        selected: ``[L_T, B, N_T]`` bool. The last teacher layer in ``layers`` decides which queries are used.
        context: context of the step.
    """
    queries, match = teacher.queries, context.teacher_match(teacher)[layers]
    valid = selected[layers[-1]]
    if bool(valid.all()):
        queries = group(queries)
        output = context.query_student.decode(queries, student.context)
    else:
        width = max(int(valid.sum(-1).max()), 1)
        index = valid.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[:, :width]
        valid = valid.gather(-1, index)
        match = match.gather(-1, index.cpu().expand(len(layers), -1, -1))
        match = match.masked_fill(~valid.cpu(), -1)
        queries = group(_rows(queries, index), None if bool(valid.all()) else valid)
        output = _silenced(context.query_student.decode(queries, student.context), valid)
    given = match if config.assign_source == "teacher" else None
    terms = context.student.losses(replace(output, aux=()), context.targets, context.training.num_boxes, given)
    weights = context.student.loss_weights
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def _rows(queries: Queries, index: Tensor) -> Queries:
    """Returns the queries at ``index [B, K]``."""

    def at(values: Tensor | None) -> Tensor | None:
        return None if values is None else gather_queries(values, index)

    return Queries(gather_queries(queries.content, index), at(queries.position), at(queries.reference), queries.source.gather(-1, index))


def _silenced(output: QueryOutput, valid: Tensor) -> QueryOutput:
    """Turns padded queries into certain background, which costs nothing and has no gradient."""
    background = torch.full_like(output.logits, -CERTAIN)
    if output.activation == "softmax":
        background[..., -1] = CERTAIN
    return replace(output, logits=output.logits.where(valid[None, :, :, None], background))
