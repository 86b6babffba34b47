"""Computes the terms of LD (Zheng et al., CVPR 2022) on dense detectors, its original setting, with the regions of the released code."""

import torch
from torch import Tensor

from workbench.boxes import pair_coordinates
from workbench.datasets.targets import TargetBatch
from workbench.detectors.atss import nearest_anchors
from workbench.detectors.dense_detector import IGNORED, pixel_boxes
from workbench.detectors.output import DenseOutput
from workbench.detectors.whole_batch import over_processes, sum_over_processes
from workbench.errors import IncompatibleError
from workbench.methods.kd_detr import softened_divergence


def check_grids(method: str, student: DenseOutput, teacher: DenseOutput) -> None:
    """Checks that anchor n of one detector is anchor n of the other.

    Raises:
        IncompatibleError: the levels or the number of anchors of a cell differ.
    """
    own, other = ((output.grid.strides, output.grid.shapes) for output in (student, teacher))
    if own != other:
        raise IncompatibleError(
            f"method '{method}' compares anchor by anchor, but the student has strides {list(own[0])} with {own[1]} a cell and the teacher "
            f"has strides {list(other[0])} with {other[1]} a cell."
        )


def dense_terms(
    student: DenseOutput, teacher: DenseOutput, wanted: Tensor, match: Tensor, region: Tensor, temperature: float, class_temperature: float
) -> dict[str, Tensor]:
    """Returns ``main``, ``valuable`` and ``classes``; a term is left out if its region is empty in this batch.

    The main region consists of the positives of the student's own assignment. ``main`` and ``valuable`` are summed over levels, and
    ``classes`` is the mean over the main region of each level, summed over levels.

    Args:
        student: the student's output.
        teacher: the teacher's output on the same images.
        wanted: ``[1, B, N, C]`` the teacher's logits in the student's classes.
        match: ``[1, B, N]`` the student's assignment.
        region: ``[B, N]``, see ``released_region``.
        temperature: of the distributions over edge distances.
        class_temperature: of the class distributions.
    """
    assert student.box_distribution is not None and teacher.box_distribution is not None
    own, other = student.box_distribution[0], teacher.box_distribution[0]
    terms: dict[str, Tensor] = {}
    main = (match[0] >= 0).to(own.device).nonzero(as_tuple=True)
    level = student.grid.level[main[1]]
    found = over_processes(level.bincount(minlength=len(student.grid.strides)))
    if len(main[0]):
        logits = student.logits[0][main]
        edges = softened_divergence(own[main], other[main], temperature).sum(-1)
        terms["main"] = sum_over_processes((edges * logits.detach().sigmoid().amax(-1)).sum() / 4)
        classes = softened_divergence(logits, wanted[0][main], class_temperature)
        terms["classes"] = (classes / found[level]).sum()
    near = (region > 0).nonzero(as_tuple=True)
    if len(near[0]):
        edges = softened_divergence(own[near], other[near], temperature).sum(-1)
        terms["valuable"] = sum_over_processes((edges * region[near]).sum() / 16)
    return terms


@torch.no_grad()
def released_region(student: DenseOutput, match: Tensor, targets: TargetBatch, candidates: int, lower: float) -> Tensor:
    """Returns, for every anchor, the IoU with its target if it lies in the valuable localization region, else 0: ``[B, N]``.

    The region of a target are the anchors whose measure lies in [``lower`` times the threshold, threshold). The threshold is that of ATSS.
    The measure is the released code's: it is called DIoU there, but the overlap is divided by the area of the anchor in place of the union,
    and the squared distance of the centres over that of the hull's corners is taken off. Positives are not left out. Of several targets
    the one with the highest IoU counts. Anchors that the assignment ignores lie in no region.

    Args:
        student: the student's output, for its anchors.
        match: ``[1, B, N]`` the student's assignment.
        targets: targets of the B images; only matchable ones count.
        candidates: number of anchors of each level that decide the threshold.
        lower: lower bound of the region, as a share of the threshold.
    """
    counted = (match[0] > IGNORED).to(student.logits.device)
    if not targets.valid.shape[1]:
        return student.boxes.new_zeros(counted.shape)
    assert student.valid is not None
    boxes = pixel_boxes(targets.boxes, student.sides)
    threshold = nearest_anchors(student.grid, student.valid, boxes, candidates).threshold[..., None]
    (left, top, right, bottom), (a, b, c, d) = pair_coordinates(boxes, student.grid.anchors)
    across, down = torch.minimum(right, c) - torch.maximum(left, a), torch.minimum(bottom, d) - torch.maximum(top, b)
    shared = across.clamp(min=0) * down.clamp(min=0)
    area = (c - a) * (d - b)
    iou = shared / (area + (right - left) * (bottom - top) - shared)
    apart = (left + right - a - c).square() + (top + bottom - b - d).square()
    hull = (torch.maximum(right, c) - torch.minimum(left, a)).square() + (torch.maximum(bottom, d) - torch.minimum(top, b)).square()
    measure = shared / area - apart / 4 / hull
    inside = (measure < threshold) & (measure >= lower * threshold) & targets.valid[..., None] & counted[:, None]
    return iou.where(inside, 0.0).amax(1)
