"""Computes Hungarian-matching logits distillation (DETRDistill, equations 3 and 4) and the joint form of the released code."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from workbench.detectors.output import DetectorOutput
from workbench.detectors.whole_batch import over_processes
from workbench.matching import QUERY_COST, Activation, assign
from workbench.methods.classes import box_loss, class_divergence, class_targets, pair_costs
from workbench.methods.context import LayerPairs, MethodContext
from workbench.methods.detrdistill.config import LogitsConfig
from workbench.methods.method import gather_queries


def logits_terms(
    config: LogitsConfig,
    pairs: LayerPairs,
    student: DetectorOutput,
    teacher: DetectorOutput,
    selected: Tensor,
    context: MethodContext,
    no_object: Literal["1-max"] | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the terms and the matching that they are computed over.

    Args:
        config: switches of the logits part.
        pairs: pairs of layers, each of which is matched separately.
        student: output with gradient.
        teacher: output without gradient.
        selected: ``[L_T, B, N_T]`` bool, teacher queries that teach.
        context: context of the step.
        no_object: see ``class_targets``.

    Returns:
        ``logits``, or ``logits_positive`` (absent if no teacher query has a target) and ``logits_negative``; and ``[P, B, N_S]``
        int64 on the CPU, the teacher query of each student query, -1 for none.
    """
    found = _match(config, pairs, student, teacher, selected, context, no_object)
    layers = torch.tensor(pairs.student, device=student.logits.device)
    logits, boxes = student.logits.index_select(0, layers), student.boxes.index_select(0, layers)
    loss, count = _pair_losses(config, logits, boxes, found, student.activation)
    count = over_processes(count, least=1)
    values = (loss / count * torch.tensor(pairs.share, device=logits.device)).sum(-1)
    names = ["logits_positive", "logits_negative"] if config.split else ["logits"]
    terms = {name: value for name, value, some in zip(names, values, found.some(config.split), strict=False) if some}
    return terms, found.teacher_queries()


@torch.no_grad()
def logits_mates(
    config: LogitsConfig,
    pairs: LayerPairs,
    student: DetectorOutput,
    teacher: DetectorOutput,
    selected: Tensor,
    context: MethodContext,
    no_object: Literal["1-max"] | None,
) -> Tensor:
    """Returns only the matching. Arguments and result are those of ``logits_terms``."""
    return _match(config, pairs, student, teacher, selected, context, no_object).teacher_queries()


@dataclass(frozen=True)
class _Matching:
    """The targets that P pairs of layers are trained on.

    Attributes:
        columns: ``[P, B, K]`` teacher queries that may teach. None if column n is teacher query n.
        wanted: ``[P, B, K, C]`` class targets of these queries.
        boxes: ``[P, B, K, 4]`` boxes of these queries.
        mate: ``[P, B, N_S]`` column of each student query, -1 for none. If teacher queries with an object are matched first, only these.
        rest: The same for the other teacher queries. None if they are not separate, or teach nothing.
    """

    columns: Tensor | None
    wanted: Tensor
    boxes: Tensor
    mate: Tensor
    rest: Tensor | None

    def teacher_queries(self) -> Tensor:
        """Returns the teacher query of each student query, ``[P, B, N_S]`` int64 on the CPU."""
        mate = self.all_mates()
        if self.columns is None or not self.columns.shape[-1]:
            return mate
        return self.columns.gather(-1, mate.clamp(min=0)).where(mate >= 0, -1)

    def some(self, split: bool) -> tuple[bool, ...]:
        """Returns whether there are pairs, of each kind if teacher queries with an object are separate."""
        if not split:
            return (bool((self.mate >= 0).any()),)
        return bool((self.mate >= 0).any()), self.rest is not None and bool(((self.rest >= 0) & (self.mate < 0)).any())

    def all_mates(self) -> Tensor:
        """Returns the column of each student query, with an object or without, ``[P, B, N_S]``."""
        return self.mate if self.rest is None else torch.maximum(self.mate, self.rest)


def _match(
    config: LogitsConfig,
    pairs: LayerPairs,
    student: DetectorOutput,
    teacher: DetectorOutput,
    selected: Tensor,
    context: MethodContext,
    no_object: Literal["1-max"] | None,
) -> _Matching:
    """See ``logits_terms``."""
    wanted = class_targets(teacher, student.activation, context, no_object)[pairs.teacher]
    wanted_boxes = teacher.boxes[pairs.teacher]
    if config.clamp_boxes:
        wanted_boxes = xyxy_to_cxcywh(cxcywh_to_xyxy(wanted_boxes).clamp(0, 1))
    taught = selected[pairs.teacher].cpu()
    positive = taught & (context.teacher_match(teacher)[pairs.teacher] >= 0) if config.split else torch.zeros_like(taught)
    if config.negatives == "top_k":
        score = context.teacher_probability(teacher)[pairs.teacher].amax(-1).cpu()
        best = score.masked_fill(positive | ~taught, -1.0).topk(min(config.k, taught.shape[-1]), dim=-1).indices
        taught = positive | (taught & torch.zeros_like(taught).scatter_(-1, best, True))
    elif config.negatives == "off":
        taught = positive
    columns = None
    if not taught.all():
        # only the columns that teach enter the cost, so that its size follows their number and not that of the teacher's queries
        width = int(taught.sum(-1).max())
        columns = taught.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[..., :width]
        taught, positive = taught.gather(-1, columns), positive.gather(-1, columns)
        here = columns.to(student.logits.device)
        wanted, wanted_boxes = gather_queries(wanted, here), gather_queries(wanted_boxes, here)
    own, own_boxes = student.logits[pairs.student], student.boxes[pairs.student]
    class_cost, box_cost = pair_costs(own, own_boxes, wanted, wanted_boxes, student.activation, QUERY_COST)
    cost = (class_cost + box_cost).cpu()
    if not config.split:
        return _Matching(columns, wanted, wanted_boxes, assign(cost, columns=taught), None)
    mate = assign(cost, columns=positive)
    if config.negatives == "off":
        return _Matching(columns, wanted, wanted_boxes, mate, None)
    # students that the positives took are excluded, which keeps the whole matching one-to-one
    rest = assign(cost if config.negative_cost == "class_and_box" else box_cost, columns=taught & ~positive, rows=mate < 0)
    return _Matching(columns, wanted, wanted_boxes, mate, rest)


def _pair_losses(config: LogitsConfig, logits: Tensor, boxes: Tensor, found: _Matching, activation: Activation) -> tuple[Tensor, Tensor]:
    """Returns the summed loss of matched pairs and their number, each ``[K, P]`` for P pairs of layers.

    The K = 1 or 2 kinds of teacher queries are those with an object (or all, if they are matched together), and the rest. The class term is
    cross-entropy with the teacher's probability as target, minus the teacher's own entropy. This constant carries no gradient and makes a
    perfect copy cost 0.
    """
    mate = found.all_mates()
    kinds = [found.mate >= 0, (mate >= 0) & (found.mate < 0)] if config.split else [mate >= 0]
    paired = torch.stack(kinds).to(logits.device)
    if not found.boxes.shape[-2]:
        return boxes.new_zeros(paired.shape[:2]), paired.sum((-1, -2))
    # every student query with its teacher query: as most have one, masking the others costs less than indexing those that remain
    column = mate.clamp(min=0).to(logits.device)
    l1, giou = box_loss(boxes, gather_queries(found.boxes, column))
    box = config.weights[1] * l1 + config.weights[2] * giou
    divergence = config.weights[0] * class_divergence(logits, gather_queries(found.wanted, column), activation)
    loss = [box + divergence, box if config.negatives != "class_and_box" else box + divergence]
    return torch.stack([value.where(some, 0.0).sum((-1, -2)) for value, some in zip(loss, paired, strict=False)]), paired.sum((-1, -2))
