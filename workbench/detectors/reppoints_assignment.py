"""Assigns targets in the two stages of RepPoints (Yang et al., ICCV 2019, section 4.2): by place, and by overlap."""

import torch
from torch import Tensor

from workbench.boxes import pairwise_iou_and_giou
from workbench.detectors.dense_detector import BACKGROUND, IGNORED
from workbench.detectors.output import Grid

SCALE = 4  # a target lies on the level whose stride is about its side divided by this
POSITIVE, NEGATIVE = 0.5, 0.4


def place_assignment(grid: Grid, exists: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
    """Returns the target of each point in the first stage ``[B, N]``, -1 for background.

    A target has one point: the nearest to its centre on the level of its size, in units of its sides. A point that is the nearest to
    several targets learns the one whose centre is nearer.

    Args:
        grid: the points.
        exists: ``[B, N]`` bool, False for a point outside the un-padded image.
        boxes: ``[B, G, 4]`` targets as xyxy in input pixels.
        valid: ``[B, G]`` bool, targets that may be assigned.
    """
    if not boxes.shape[1]:
        return torch.full(exists.shape, BACKGROUND, device=boxes.device)
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    levels = boxes.new_tensor(grid.strides).log2().floor()
    level = (sides / SCALE).log2().mean(-1).trunc().clamp(levels.min(), levels.max())
    apart = grid.centres - ((boxes[..., :2] + boxes[..., 2:]) / 2)[:, :, None]
    distance = (apart / sides[:, :, None]).square().sum(-1).sqrt()
    may = (levels[grid.level] == level[..., None]) & exists[:, None] & valid[..., None]
    nearest, point = distance.masked_fill(~may, torch.inf).min(-1, keepdim=True)
    best, target = torch.full_like(distance, torch.inf).scatter_(-1, point, nearest).min(1)
    return target.masked_fill(best.isinf(), BACKGROUND)


def overlap_assignment(candidates: Tensor, exists: Tensor, boxes: Tensor, valid: Tensor) -> Tensor:
    """Returns the target of each candidate in the second stage ``[B, N]``, -1 for background and -2 for what is ignored.

    A candidate learns the target with the highest IoU if that is 0.5 or more, is background below 0.4 and ignored between. The candidates
    with the highest IoU of all with some target learn that target whatever the IoU. The released code does so even if that IoU is 0,
    which makes every candidate that overlaps nothing a positive of the target; here such a target has none.

    Args:
        candidates: ``[B, N, 4]`` boxes of the first stage as xyxy in input pixels.
        exists: ``[B, N]`` bool, False for a candidate outside the un-padded image.
        boxes: ``[B, G, 4]`` targets as xyxy in input pixels.
        valid: ``[B, G]`` bool, targets that may be assigned.
    """
    if not boxes.shape[1]:
        return torch.full(exists.shape, BACKGROUND, device=boxes.device)
    iou, _ = pairwise_iou_and_giou(boxes, candidates)
    iou = iou.masked_fill(~(exists[:, None] & valid[..., None]), 0.0)
    best, target = iou.max(1)
    target = target.masked_fill(best < POSITIVE, IGNORED).masked_fill(best < NEGATIVE, BACKGROUND)
    most = iou.amax(-1, keepdim=True)
    # of two targets that claim a candidate the later one gets it, as in the released code
    order = torch.arange(boxes.shape[1], device=boxes.device)[:, None]
    claimed = torch.where((iou == most) & (most > 0), order, BACKGROUND).amax(1)
    return torch.where(claimed >= 0, claimed, target)
