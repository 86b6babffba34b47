"""Computes with boxes of any leading dimensions; torchvision's own functions take one image at a time.

Boxes are ``[..., 4]``, as cxcywh in 0..1 unless a name says xyxy.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Converts boxes ``[..., 4]`` from centre and size to corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Converts boxes ``[..., 4]`` from corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) * 0.5, high - low], dim=-1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Computes IoU and generalised IoU (Rezatofighi et al., CVPR 2019, Algorithm 1) of xyxy boxes, elementwise.

    Args:
        a: ``[..., 4]`` xyxy.
        b: ``[..., 4]`` xyxy, broadcast against ``a``.

    Returns:
        Two tensors of the broadcast shape without the last dimension. Two boxes without area have IoU 0.
    """
    return _iou_and_giou(a.unbind(-1), b.unbind(-1), torch.finfo(a.dtype).tiny)


def pairwise_iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Computes IoU and generalised IoU of all pairs: ``a [..., N, 4]`` and ``b [..., M, 4]`` in xyxy give two ``[..., N, M]``."""
    return _iou_and_giou(*pair_coordinates(a, b), torch.finfo(a.dtype).tiny)


def pair_coordinates(a: Tensor, b: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Splits boxes into coordinates that broadcast to all pairs: four ``[..., N, 1]`` of ``a [..., N, 4]``, four ``[..., 1, M]`` of b.

    Each is a contiguous block of memory, because element-wise operations on every fourth number take twice the time.
    """
    return a.movedim(-1, 0).contiguous().unsqueeze(-1).unbind(0), b.movedim(-1, 0).contiguous().unsqueeze(-2).unbind(0)


def _iou_and_giou(a: tuple[Tensor, ...], b: tuple[Tensor, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Computes IoU and generalised IoU from the coordinates left, top, right and bottom.

    Each coordinate is a tensor of its own. With a last dimension of two or four, element-wise operations spend their time between elements.
    """
    (left, top, right, bottom), (left_b, top_b, right_b, bottom_b) = a, b
    width = (torch.minimum(right, right_b) - torch.maximum(left, left_b)).clamp(min=0)
    height = (torch.minimum(bottom, bottom_b) - torch.maximum(top, top_b)).clamp(min=0)
    intersection = width * height
    union = (right - left) * (bottom - top) + (right_b - left_b) * (bottom_b - top_b) - intersection
    hull_width = torch.maximum(right, right_b) - torch.minimum(left, left_b)
    hull_area = hull_width * (torch.maximum(bottom, bottom_b) - torch.minimum(top, top_b))
    iou = intersection / union.clamp(min=eps)
    return iou, iou - (hull_area - union) / hull_area.clamp(min=eps)
