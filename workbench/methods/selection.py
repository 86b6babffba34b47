"""Selects the teacher queries that teach, and measures how good each of them is."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, iou_and_giou, pairwise_iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import DetectorOutput
from workbench.methods.context import MethodContext

Quality = Literal["paper", "official_code"]
# exponent of the score in the quality of a query; the paper gives no value
QUALITY_GAMMA = 0.5


class SelectionConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Chooses among the teacher's queries, per layer and image; the others teach nothing."""

    rule: Literal["all", "positives", "top_k", "threshold", "random_k", "lowest_k"] = "all"
    """Which teacher queries teach. ``all`` takes every query; ``positives`` those that the teacher's own matching ties to a target;
    ``top_k`` and ``lowest_k`` the ``k`` best and the ``k`` worst by quality; ``threshold`` those whose quality reaches the key of that
    name; ``random_k`` draws ``k`` anew in each step.
    """
    k: Annotated[int, Field(ge=1)] = 10
    """Number of queries that ``top_k``, ``lowest_k`` and ``random_k`` take."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Smallest quality that the rule ``threshold`` accepts."""
    quality: Quality = "official_code"
    """How quality is measured. ``paper`` is score^gamma IoU^(1-gamma) with the matched target, and 0 without one, so that it cannot rank
    unmatched queries; ``official_code`` is the best class score times the largest IoU with any target, and the score alone in images
    without targets.
    """
    gamma: Annotated[float, Field(ge=0, le=1)] = QUALITY_GAMMA
    """Exponent of the score in the paper's quality."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of ``random_k``. The draw depends on it and on the step alone."""


@torch.no_grad()
def selected_queries(config: SelectionConfig, teacher: DetectorOutput, context: MethodContext) -> Tensor:
    """Returns ``[L, B, N]`` bool, True for the teacher queries that teach."""
    shape, device = teacher.logits.shape[:3], teacher.logits.device
    if config.rule == "all":
        return torch.ones(shape, dtype=torch.bool, device=device)
    if config.rule == "positives":
        return context.teacher_match(teacher).to(device) >= 0
    if config.rule == "random_k":
        # drawn on the CPU and from its own seed, so that every device gets the same queries and dropout draws as without it
        # outside training, where queries are recorded, the draw of the first step is used
        step = 0 if context.progress is None else context.progress.step
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        rank = torch.rand(shape, generator=generator).to(device)
    else:
        layers = list(range(shape[0]))
        rank = query_quality(config.quality, config.gamma, teacher, layers, context.targets, context)
    if config.rule == "threshold":
        return rank >= config.threshold
    best = rank.topk(min(config.k, shape[2]), dim=-1, largest=config.rule != "lowest_k").indices
    return torch.zeros(shape, dtype=torch.bool, device=device).scatter_(-1, best, True)


@torch.no_grad()
def query_quality(
    quality: Quality, gamma: float, teacher: DetectorOutput, layers: list[int], targets: TargetBatch, context: MethodContext
) -> Tensor:
    """Returns the quality of every teacher query, ``[len(layers), B, N]``.

    ``paper`` is score^gamma IoU^(1-gamma) with the target that the teacher's own matching assigns, and 0 without one (DETRDistill,
    equation 8). ``official_code`` is the best class score times the largest IoU with any target, and the score alone in images without
    targets.
    """
    probability = context.teacher_probability(teacher)[layers]
    if quality == "official_code":
        return probability.amax(-1) * largest_iou(target_ious(teacher, layers, targets), targets)
    match = context.teacher_match(teacher)[layers]
    # few queries have a target, and only these are computed
    layer, image, query = (match >= 0).nonzero(as_tuple=True)
    target = match[layer, image, query].to(probability.device)
    layer, image, query = (index.to(probability.device) for index in (layer, image, query))
    score = probability[layer, image, query, targets.labels[image, target]]
    boxes = teacher.boxes[layers].float()[layer, image, query]
    iou, _ = iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets.boxes[image, target]))
    return torch.zeros_like(probability[..., 0]).index_put((layer, image, query), score**gamma * iou ** (1 - gamma))


def target_ious(teacher: DetectorOutput, layers: list[int], targets: TargetBatch) -> Tensor:
    """Returns the IoU with every target, ``[len(layers), B, N, G]``; 0 for a target that must not be matched."""
    iou, _ = pairwise_iou_and_giou(cxcywh_to_xyxy(teacher.boxes[layers].float()), cxcywh_to_xyxy(targets.boxes))
    return iou.masked_fill(~targets.valid[None, :, None, :], 0.0)


def largest_iou(ious: Tensor, targets: TargetBatch) -> Tensor:
    """Returns the largest IoU with any target. In images without targets it is 1, so that quality is the score alone."""
    if not targets.labels.shape[1]:
        return ious.new_ones(ious.shape[:-1])
    empty = ~targets.valid.any(1)
    return ious.amax(-1).masked_fill(empty[None, :, None], 1.0)
