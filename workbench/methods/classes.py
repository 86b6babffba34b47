"""Compares class predictions across heads: targets, cost and loss for a student and a teacher of different activations."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.detectors.output import DetectorOutput
from workbench.matching import Activation, CostWeights, box_costs, soft_class_cost
from workbench.methods.context import MethodContext


@torch.no_grad()
def class_targets(
    teacher: DetectorOutput, activation: Activation, context: MethodContext, no_object: Literal["1-max"] | None = None
) -> Tensor:
    """Returns soft targets for a student's class head, in the student's classes.

    Args:
        teacher: any output of the teacher.
        activation: activation of the student's head.
        context: context of the step.
        no_object: rule for a softmax student of a sigmoid teacher, see ``ClassTeachingConfig``. Without a rule such a pair was refused.

    Returns:
        ``[L, B, N_T, C]`` probabilities for a sigmoid head, without no-object of a softmax teacher; ``[L, B, N_T, C + 1]``
        distributions for a softmax head, in which classes that the student lacks count as no-object.
    """
    classes = context.teacher_probability(teacher)
    if activation == "sigmoid":
        return classes
    if teacher.activation == "softmax":
        return torch.cat([classes, 1 - classes.sum(-1, keepdim=True).clamp(max=1)], -1)
    assert no_object == "1-max"
    best = classes.amax(-1, keepdim=True)
    return torch.cat([classes * best / classes.sum(-1, keepdim=True).clamp(min=1e-12), 1 - best], -1)


def class_divergence(logits: Tensor, target: Tensor, activation: Activation) -> Tensor:
    """Returns the summed binary cross-entropy (sigmoid) or cross-entropy (softmax), minus the target's entropy: 0 for a perfect copy.

    Args:
        logits: ``[..., K]``.
        target: ``[..., K]``, result of ``class_targets``.
        activation: activation of the logits.

    Returns:
        ``[...]``: the Kullback-Leibler divergence from student to teacher, of K Bernoulli variables or of one distribution.
    """
    if activation == "softmax":
        return (torch.xlogy(target, target) - target * logits.log_softmax(-1)).sum(-1)
    entropy = -(torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target))
    return (F.binary_cross_entropy_with_logits(logits, target, reduction="none") - entropy).sum(-1)


@torch.no_grad()
def pair_costs(
    logits: Tensor, boxes: Tensor, target: Tensor, target_boxes: Tensor, activation: Activation, weights: CostWeights
) -> tuple[Tensor, Tensor]:
    """Computes the two parts of the cost of every student query with every teacher query.

    Args:
        logits: ``[..., N_S, K]``.
        boxes: ``[..., N_S, 4]`` cxcywh.
        target: ``[..., N_T, K]``, result of ``class_targets``.
        target_boxes: ``[..., N_T, 4]`` cxcywh.
        activation: activation of the logits.
        weights: weights of the three terms.

    Returns:
        The weighted cross-entropy, and the weighted L1 and GIoU, each ``[..., N_S, N_T]``.
    """
    l1, giou = box_costs(boxes.float(), target_boxes.float())
    if activation == "softmax":
        classes = -logits.float().log_softmax(-1) @ target.float().transpose(-1, -2)
    else:
        classes = soft_class_cost(logits.float(), target.float())
    return weights.class_ * classes, weights.bbox * l1 + weights.giou * giou


def box_loss(boxes: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Returns L1 and 1 - GIoU of pairs of cxcywh boxes, each ``[...]``."""
    _, giou = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))
    return (boxes - wanted).abs().sum(-1), 1 - giou
