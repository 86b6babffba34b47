"""Duplicates among scored boxes: what is left is what a comparison of every pair leaves."""

import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from workbench.detectors.suppression import _without_duplicates


def left_by_pairs(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, threshold: float) -> list[int]:
    """Goes through the boxes from the best, the first of equal ones first, and keeps one unless a kept one of its class overlaps it."""
    kept: list[int] = []
    overlaps = box_iou(boxes, boxes)
    for index in sorted(range(len(boxes)), key=lambda one: (-float(scores[one]), one)):
        if not any(labels[other] == labels[index] and overlaps[index, other] > threshold for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize(("count", "classes"), [(0, 3), (1, 3), (60, 3), (700, 1), (700, 4), (700, 80), (900, 3)])
def test_what_is_left_of_each_class_is_what_comparing_every_pair_leaves(count: int, classes: int):
    generator = torch.Generator().manual_seed(count + classes)
    corners = 80 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corners, corners + 2 + 30 * torch.rand(count, 2, generator=generator)], 1).double()
    scores = (torch.rand(count, generator=generator).mul(50).round() / 50).double()  # many are equal
    labels = torch.randint(classes, (count,), generator=generator)
    found = _without_duplicates(boxes, scores, labels, 0.5, classes)
    assert found.tolist() == left_by_pairs(boxes, scores, labels, 0.5) == batched_nms(boxes, scores, labels, 0.5).tolist()
