"""Computes target-aware consistent logit distillation (CLoCKDistill, section 3.2): both decoders get queries made from targets."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from workbench.detectors.output import QueryOutput
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.whole_batch import over_processes
from workbench.methods.classes import box_loss, class_divergence, class_targets
from workbench.methods.clockdistill.config import LogitsConfig
from workbench.methods.context import LayerPairs, MethodContext


class TargetContents(nn.Module):
    """Makes the content of a query for each class: the teacher's own label table if it trained one, else a fixed orthogonal one.

    The table is not trained and is saved with the run's checkpoints. Only the projection to another width is trained.

    Args:
        student: detector whose width the student's copy has.
        teacher: detector whose classes and label table are used.
        seed: seed of the orthogonal table, whose rows are as long as the teacher's own query contents on average.
    """

    table: Tensor

    def __init__(self, student: QueryDetector, teacher: QueryDetector, seed: int):
        super().__init__()
        table = teacher.label_table()
        if table is None:
            shape = (len(teacher.spec.classes), teacher.width)
            # orthogonal rows from a QR decomposition of numbers from a generator of its own
            drawn = torch.randn(max(shape), min(shape), generator=torch.Generator().manual_seed(seed))
            rows = torch.linalg.qr(drawn)[0]
            length = float(teacher.blank_output().queries.content.detach().norm(dim=-1).mean())
            table = (rows if shape[0] >= shape[1] else rows.T) * (length or 1.0)
        self.register_buffer("table", table.detach().float().clone())
        self.project = nn.Identity() if student.width == teacher.width else nn.Linear(teacher.width, student.width)


def target_logits_term(
    config: LogitsConfig,
    contents: TargetContents,
    pairs: LayerPairs,
    student: QueryOutput,
    teacher: QueryOutput,
    context: MethodContext,
    no_object: Literal["1-max"] | None,
) -> Tensor | None:
    """Compares both detectors' outputs for each target's query by divergence and box loss, weighted by the teacher's confidence.

    No matching is needed. The group is filled up to the largest number of targets; the filling queries are hidden from the others and cost
    nothing.

    Args:
        config: switches of the logits part.
        contents: module that makes the contents of the queries.
        pairs: pairs of layers.
        student: output whose memory the student's decoder reads.
        teacher: output whose memory the teacher's decoder reads.
        context: context that holds the live teacher.
        no_object: see ``class_targets``.

    Returns:
        A scalar, or None in a batch without targets.
    """
    targets = context.targets
    if not targets.any_valid:
        over_processes(torch.zeros(len(pairs.student), device=targets.valid.device))
        return None
    boxes = noisy_boxes(targets.boxes, config.box_noise, config.seed * 1_000_003 + context.training.step)
    labels = targets.labels
    if context.pairing.class_map is not None:
        labels = torch.tensor(context.pairing.class_map, device=labels.device)[labels]
    content = contents.table[labels]
    valid = None if bool(targets.valid_on_host.all()) else targets.valid
    with torch.no_grad():
        asked = context.query_teacher.queries_of_boxes(teacher, boxes, content)
        wanted = context.query_teacher.decode(replace(asked, valid=valid), teacher.context)
    asked = context.query_student.queries_of_boxes(student, boxes, contents.project(content))
    given = context.query_student.decode(replace(asked, valid=valid), student.context)
    own, other = pairs.student, pairs.teacher
    confidence = (context.teacher_probability(wanted)[other].amax(-1) * targets.valid).detach()
    l1, giou = box_loss(given.boxes[own], wanted.boxes[other].detach())
    loss = config.weights[0] * _divergence(config, pairs, given, wanted, context, no_object)
    loss = loss + config.weights[1] * l1 + config.weights[2] * giou
    total = (confidence * loss).sum((1, 2))
    count = confidence.sum((1, 2)) if config.norm == "sum_w" else targets.valid.sum().expand(len(own))
    return (total / over_processes(count, least=1e-6) * torch.tensor(pairs.share, device=total.device)).sum()


def _divergence(
    config: LogitsConfig,
    pairs: LayerPairs,
    given: QueryOutput,
    wanted: QueryOutput,
    context: MethodContext,
    no_object: Literal["1-max"] | None,
) -> Tensor:
    """Returns the divergence ``[P, B, G]`` of the student's class prediction from the teacher's, at the temperature."""
    heat = config.kl_temperature
    logits = given.logits[pairs.student] / heat
    if config.kl_form == "softmax":
        classes = len(context.student.spec.classes)
        columns = list(context.pairing.class_map or range(classes))
        target = (wanted.logits[pairs.teacher][..., columns] / heat).softmax(-1)
        return heat**2 * class_divergence(logits[..., :classes], target, "softmax")
    cooled = replace(wanted, logits=wanted.logits / heat)
    target = class_targets(cooled, given.activation, context, no_object)[pairs.teacher]
    return heat**2 * class_divergence(logits, target, given.activation)


def noisy_boxes(boxes: Tensor, noise: float, seed: int) -> Tensor:
    """Adds DN-DETR's noise to boxes ``[B, G, 4]`` cxcywh and keeps them inside the image (Li et al., CVPR 2022, section 4.2)."""
    if not noise:
        return boxes
    draw = (2 * torch.rand(boxes.shape, generator=torch.Generator().manual_seed(seed)) - 1).to(boxes.device) * noise
    centre = boxes[..., :2] + draw[..., :2] * boxes[..., 2:] / 2
    return torch.cat([centre.clamp(0, 1), (boxes[..., 2:] * (1 + draw[..., 2:])).clamp(1e-4, 1)], dim=-1)
