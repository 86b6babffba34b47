"""Computes matching costs and Hungarian assignments, of queries to targets and of student queries to teacher queries.

Everything here runs without gradient, for all layers of a batch at once, with one copy from the device to the host. A matching is a
tensor ``[..., N]`` of column indices, -1 for unmatched. Training, stored tables and analysis all use this form.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, pair_coordinates, pairwise_iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.errors import NonFiniteError

Activation = Literal["sigmoid", "softmax"]
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


@dataclass(frozen=True)
class CostWeights:
    """Weights of the three cost terms.

    They are 2 / 5 / 2 for targets (Deformable DETR), and 1 / 5 / 2 between queries (DETRDistill) and for targets of softmax heads (DETR).
    """

    class_: float = 2.0
    bbox: float = 5.0
    giou: float = 2.0


DETECTION_COST: dict[Activation, CostWeights] = {"sigmoid": CostWeights(), "softmax": CostWeights(class_=1.0)}
QUERY_COST = CostWeights(class_=1.0)


class NonFiniteCostError(NonFiniteError):
    """A cost is NaN or infinite. ``positions`` holds its leading indices, which are (layer, image in the batch) for a batch."""

    def __init__(self, positions: list[tuple[int, ...]]):
        super().__init__(f"matching cost is not finite at (layer, image) {positions[:5]}")
        self.positions = positions


def class_cost(logits: Tensor, labels: Tensor, activation: Activation) -> Tensor:
    """Returns the class part of the cost of every query for every target.

    Sigmoid heads use the focal cost (Deformable DETR, appendix A.4): alpha (1-p)^gamma (-log p) - (1-alpha) p^gamma (-log(1-p)).
    Softmax heads use -p (DETR, equation 1).

    Args:
        logits: ``[L, B, N, C]``.
        labels: ``[B, G]``.
        activation: activation of the class head.

    Returns:
        ``[L, B, N, G]``.
    """
    layers, _, queries, _ = logits.shape
    index = labels[None, :, None, :].expand(layers, -1, queries, -1)
    if activation == "softmax":
        return -logits.softmax(-1).gather(-1, index)
    z = logits.gather(-1, index)
    p = z.sigmoid()
    positive = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * F.softplus(-z)
    negative = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * F.softplus(z)
    return positive - negative


def box_costs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns L1 and negative GIoU of all pairs of cxcywh boxes: ``[..., N, 4]`` and ``[..., M, 4]`` give two ``[..., N, M]``."""
    x, y, width, height = ((own - other).abs() for own, other in zip(*pair_coordinates(a, b), strict=True))
    l1 = x + y + width + height
    _, giou = pairwise_iou_and_giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))
    return l1, -giou


@torch.no_grad()
def match_targets(
    logits: Tensor, boxes: Tensor, targets: TargetBatch, activation: Activation = "sigmoid", weights: CostWeights | None = None
) -> Tensor:
    """Matches queries with targets by the Hungarian algorithm, per layer and image (DETR, equation 1).

    Args:
        logits: ``[L, B, N, C]``.
        boxes: ``[L, B, N, 4]`` cxcywh.
        targets: targets of the B images.
        activation: activation of the class head.
        weights: weights of the cost terms; None takes those published for this activation.

    Returns:
        ``[L, B, N]`` int64 on the CPU: target index, -1 for unmatched.

    Raises:
        NonFiniteCostError: a logit or box is NaN or infinite.
    """
    logits, boxes = logits.float(), boxes.float()
    weights = weights or DETECTION_COST[activation]
    l1, giou = box_costs(boxes, targets.boxes)
    cost = weights.class_ * class_cost(logits, targets.labels, activation) + weights.bbox * l1 + weights.giou * giou
    # the host knows the targets without asking the device
    return assign(cost, targets.valid_on_host.numpy())


def soft_class_cost(student_logits: Tensor, teacher_probability: Tensor) -> Tensor:
    """Returns the summed binary cross-entropy of every student query with every teacher query (DETRDistill's released code).

    Args:
        student_logits: ``[..., N_S, C]``.
        teacher_probability: ``[..., N_T, C]`` in 0..1.

    Returns:
        ``[..., N_S, N_T]``: sum over classes of t softplus(-z) + (1 - t) softplus(z), as softplus(z) - t z.
    """
    base = F.softplus(student_logits).sum(-1, keepdim=True)
    return base - student_logits @ teacher_probability.transpose(-1, -2)


@torch.no_grad()
def query_cost(
    student_logits: Tensor, student_boxes: Tensor, teacher_probability: Tensor, teacher_boxes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the three unweighted cost terms between all student and all teacher queries.

    Returns:
        Class, L1 and negative GIoU, each ``[..., N_S, N_T]``.
    """
    l1, giou = box_costs(student_boxes.float(), teacher_boxes.float())
    return soft_class_cost(student_logits.float(), teacher_probability.float()), l1, giou


def assign(cost: Tensor, columns: Tensor | np.ndarray | None = None, rows: Tensor | None = None) -> Tensor:
    """Computes the minimum-cost one-to-one assignment of every trailing matrix.

    Args:
        cost: ``[..., N, M]``, on any device. It is copied to the host once.
        columns: bool, broadcast to ``[..., M]``, True for columns that may be used; as an array where the host knows it.
        rows: bool, broadcast to ``[..., N]``, True for rows that may be used.

    Returns:
        ``[..., N]`` int64 on the CPU: column of each row, -1 for none.

    Raises:
        NonFiniteCostError: a usable entry is NaN or infinite.
    """
    *lead, count, width = cost.shape
    table = cost.detach().cpu().numpy().reshape(math.prod(lead), count, width)
    usable_columns = _flat_mask(columns, lead, width)
    usable_rows = _flat_mask(rows, lead, count)
    if not np.isfinite(table).all():
        bad = ~np.isfinite(table)
        if usable_columns is not None:
            bad &= usable_columns[:, None, :]
        if usable_rows is not None:
            bad &= usable_rows[:, :, None]
        flat = np.flatnonzero(bad.any((1, 2)))
        if len(flat):
            raise NonFiniteCostError([tuple(int(v) for v in np.unravel_index(i, lead)) if lead else () for i in flat])
    result = np.full((len(table), count), -1, dtype=np.int64)
    for index, matrix in enumerate(table):
        # array methods, because numpy's functions of the same names take as long as the assignment of a small matrix itself
        columns_at = None if usable_columns is None else usable_columns[index].nonzero()[0]
        rows_at = None if usable_rows is None else usable_rows[index].nonzero()[0]
        if columns_at is not None:
            matrix = matrix.take(columns_at, 1)
        if rows_at is not None:
            matrix = matrix.take(rows_at, 0)
        row, column = linear_sum_assignment(matrix)
        result[index, row if rows_at is None else rows_at.take(row)] = column if columns_at is None else columns_at.take(column)
    return torch.from_numpy(result).reshape(*lead, count)


def _flat_mask(mask: Tensor | np.ndarray | None, lead: list[int], size: int) -> np.ndarray | None:
    if mask is None:
        return None
    known = mask if isinstance(mask, np.ndarray) else mask.detach().cpu().numpy()
    return np.broadcast_to(known, (*lead, size)).reshape(math.prod(lead), size)
