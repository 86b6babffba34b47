"""Assigns anchors to targets by ATSS (Zhang et al., CVPR 2020, Algorithm 1): each target has an IoU threshold of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.boxes import iou_and_giou
from workbench.detectors.dense_detector import BACKGROUND
from workbench.detectors.output import Grid

NEAREST = 9
INSIDE = 0.01  # pixels that a positive's centre must lie inside its target, as in the released code
ROUNDING = 1e-6  # IoUs that are all equal have no spread, and must not lie below their own mean by an error of rounding


@dataclass(frozen=True)
class NearestAnchors:
    """The anchors that decide the threshold of each target: on each level those with the nearest centres, K in all.

    Attributes:
        index: ``[B, G, K]`` int64.
        exists: ``[B, G, K]`` bool, False where a level has fewer anchors in the image.
        iou: ``[B, G, K]``.
        threshold: ``[B, G]``, mean plus standard deviation of these IoUs.
    """

    index: Tensor
    exists: Tensor
    iou: Tensor
    threshold: Tensor


def nearest_anchors(grid: Grid, exists: Tensor, boxes: Tensor, nearest: int = NEAREST) -> NearestAnchors:
    """Returns the anchors with the nearest centres and the thresholds that follow from them.

    Args:
        grid: the anchors.
        exists: ``[B, N]`` bool, False for an anchor outside the un-padded image.
        boxes: ``[B, G, 4]`` xyxy in input pixels.
        nearest: number of anchors of each level.
    """
    (x, y), (left, top, right, bottom) = grid.centres.unbind(-1), boxes[..., None].unbind(-2)
    apart = (x - (left + right) / 2).square() + (y - (top + bottom) / 2).square()
    apart = apart.masked_fill(~exists[:, None], torch.inf)
    found: list[Tensor] = []
    start = 0
    for height, width in grid.sizes:
        count = height * width * grid.shapes
        found.append(apart[..., start : start + count].topk(min(nearest, count), largest=False).indices + start)
        start += count
    index = torch.cat(found, -1)
    real = exists.gather(1, index.flatten(1)).view_as(index)
    iou, _ = iou_and_giou(grid.anchors[index], boxes[:, :, None])
    amount = real.sum(-1)
    mean = (iou * real).sum(-1) / amount.clamp(min=1)
    variance = ((iou - mean[..., None]).square() * real).sum(-1) / (amount - 1).clamp(min=1)
    return NearestAnchors(index, real, iou, mean + variance.sqrt())


def atss_assignment(grid: Grid, exists: Tensor, boxes: Tensor, valid: Tensor, nearest: int = NEAREST) -> Tensor:
    """Returns the target of each anchor ``[B, N]``, -1 for background.

    Of the anchors nearest to a target those are positive whose IoU reaches the target's threshold and whose centre lies in the target. An
    anchor that is positive for several targets learns the one with the highest IoU.

    Args:
        grid: the anchors.
        exists: ``[B, N]`` bool, False for an anchor outside the un-padded image.
        boxes: ``[B, G, 4]`` targets as xyxy in input pixels.
        valid: ``[B, G]`` bool, targets that may be assigned.
        nearest: number of anchors of each level that are considered for a target.
    """
    if not boxes.shape[1]:
        return torch.full(exists.shape, BACKGROUND, device=boxes.device)
    near = nearest_anchors(grid, exists, boxes, nearest)
    (x, y), (left, top, right, bottom) = grid.centres[near.index].unbind(-1), boxes[..., None].unbind(-2)
    inside = torch.stack([x - left, y - top, right - x, bottom - y]).amin(0) > INSIDE
    positive = (near.iou >= near.threshold[..., None] - ROUNDING) & inside & near.exists & valid[..., None]
    # a candidate that is positive for no target keeps -1, which is less than any IoU
    best, target = near.iou.new_full((*valid.shape, exists.shape[1]), -1.0).scatter_(2, near.index, near.iou.where(positive, -1.0)).max(1)
    return target.masked_fill(best < 0, BACKGROUND)
