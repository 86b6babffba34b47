"""Assigns targets to anchors and proposals by their IoU, with torchvision's matcher."""

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from workbench.detectors.dense_detector import BACKGROUND


def matched(matcher: Matcher, candidates: Tensor, valid: Tensor, boxes: Tensor, usable: Tensor) -> Tensor:
    """Returns the target of each candidate by torchvision's matcher, ``[B, N]``: -1 for background, -2 between the thresholds.

    A target without area, or that no valid candidate touches, gets none. torchvision's matcher would give the second kind all the
    candidates that touch it as little as the best one does: all those with IoU 0.

    Args:
        matcher: the matcher.
        candidates: ``[B, N, 4]`` xyxy.
        valid: ``[B, N]`` bool, candidates that may be the best of a target.
        boxes: ``[B, G, 4]`` xyxy of the targets.
        usable: ``[B, G]`` bool, targets that may be assigned.
    """
    match = torch.full(valid.shape, BACKGROUND, device=valid.device)
    for image, own in enumerate(usable):
        index = own.nonzero()[:, 0]
        iou = box_iou(boxes[image, index], candidates[image]).masked_fill(~valid[image], -1.0)
        touched = (iou > 0).any(1)
        if touched.any():
            found = matcher(iou[touched])
            match[image] = torch.where(found >= 0, index[touched][found.clamp(min=0)], found)
    return match
