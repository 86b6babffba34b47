"""Computes overlaps of boxes in numpy arrays. ``boxes`` does the same for tensors, but would load torch in the dashboard."""

import numpy as np


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Turns ``[..., 4]`` cxcywh boxes into xyxy."""
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def shared_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the area of the intersection of ``[..., 4]`` xyxy boxes, for any leading dimensions that broadcast."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    return (high - low).clip(min=0).prod(-1)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divides two areas of one shape; the result is 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the IoU of ``[..., 4]`` xyxy boxes, for any leading dimensions that broadcast; 0 where both are empty."""
    shared = shared_area(a, b)
    return share(shared, (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared)


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the IoU of all pairs of xyxy boxes: ``[N, 4]`` and ``[M, 4]`` to ``[N, M]``."""
    return iou(a[:, None], b[None])


def centred_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the IoU of ``[..., 4]`` cxcywh boxes in float64, for any leading dimensions that broadcast; 0 where both are empty."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    shared = shared_area(corners_of(a), corners_of(b))
    return share(shared, a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared)


def pairwise_giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the generalised IoU of all pairs of xyxy boxes (Rezatofighi et al. 2019): ``[N, 4]`` and ``[M, 4]`` to ``[N, M]``."""
    a, b = np.asarray(a, dtype=np.float64)[:, None], np.asarray(b, dtype=np.float64)[None]
    shared = shared_area(a, b)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    hull = (np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2])).prod(-1)
    return share(shared, union) - share(hull - union, hull)
