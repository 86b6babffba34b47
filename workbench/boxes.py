"""Box arithmetic over any leading dimensions; torchvision's own functions take one image at a time.

Boxes are ``[..., 4]``: cxcywh in 0..1 unless a name says xyxy.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """``[..., 4]`` centre and size to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """``[..., 4]`` corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al., CVPR 2019, Algorithm 1) of xyxy boxes, elementwise.

    Args:
        a: ``[..., 4]`` xyxy.
        b: ``[..., 4]`` xyxy, broadcast against ``a``.

    Returns:
        Two tensors of the broadcast shape without the last dimension. Two boxes of no area have IoU 0.
    """
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = area_a + area_b - intersection
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull_area = hull[..., 0] * hull[..., 1]
    eps = torch.finfo(a.dtype).tiny
    iou = intersection / union.clamp(min=eps)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=eps)


def pairwise_iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs: ``a [..., N, 4]`` and ``b [..., M, 4]`` in xyxy to two ``[..., N, M]``."""
    return iou_and_giou(a.unsqueeze(-2), b.unsqueeze(-3))
