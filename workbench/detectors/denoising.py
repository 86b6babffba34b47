"""Contrastive denoising of DINO (Zhang et al., ICLR 2023, section 3.2): noised targets that the decoder is asked to restore.

A group holds every target twice: once noised little (positive: it must find the target again) and once noised more (negative: it
must say that there is nothing). Groups neither see each other nor are seen by the queries that are matched.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from workbench.datasets.targets import TargetBatch


@dataclass(frozen=True)
class NoisedTargets:
    """Denoising queries of a batch: ``groups`` times (S positives, then S negatives), S being the largest number of targets.

    Attributes:
        labels: ``[B, M]`` int64, noised class.
        boxes: ``[B, M, 4]`` cxcywh, noised.
        real: ``[B, M]`` bool, False in the slots that an image with fewer targets leaves empty.
        match: ``[B, M]`` int64, the target a query restores; -1 for negatives and empty slots.
        groups: number of groups.
    """

    labels: Tensor
    boxes: Tensor
    real: Tensor
    match: Tensor
    groups: int


def group_count(number: int, most: int) -> int:
    """How many groups fit: about ``number`` positives in all, at least one group.

    Args:
        number: wanted pairs of queries (``dn_number``).
        most: targets of the image with the most.
    """
    return max(1, number // most) if most else 1


@torch.no_grad()
def noised_targets(targets: TargetBatch, classes: int, number: int, label_noise: float, box_noise: float) -> NoisedTargets:
    """Draws noise from torch's global generator.

    A class is replaced by a random one with probability ``label_noise / 2`` (DN-DETR, Li et al., CVPR 2022, section 4.2, as released).
    Each side of a box moves outwards or inwards by u · ``box_noise`` · half the box's width or height, u uniform in 0..1 for
    positives and in 1..2 for negatives (DINO, section 3.2 with lambda_1 = ``box_noise``, lambda_2 = 2 lambda_1), cut at the image.

    Args:
        targets: of the batch; those that may not be matched are left out.
        classes: C.
        number: see ``group_count``.
        label_noise: 0..1.
        box_noise: 0 = none.
    """
    device = targets.boxes.device
    counts = targets.valid.sum(1)
    most = int(counts.max()) if counts.numel() else 0
    groups = group_count(number, most)
    # matchable targets first, in their order
    index = (~targets.valid).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    real = torch.arange(most, device=device)[None] < counts[:, None]
    nothing = torch.full_like(index, -1)
    match = torch.cat([index.where(real, nothing), nothing], dim=1).repeat(1, groups)
    index, real = index.repeat(1, 2 * groups), real.repeat(1, 2 * groups)
    labels = targets.labels.gather(1, index)
    boxes = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))

    swapped = torch.rand(labels.shape, device=device) < 0.5 * label_noise
    labels = torch.where(swapped, torch.randint(classes, labels.shape, device=device), labels)
    sign = 2.0 * torch.randint(2, boxes.shape, device=device) - 1.0
    shift = torch.rand(boxes.shape, device=device) + _negative(most, groups, device)[None, :, None]
    half = boxes[..., [2, 3, 2, 3]] / 2
    boxes = xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + sign * shift * half * box_noise).clamp(0, 1))
    return NoisedTargets(labels, boxes, real, match, groups)


def _negative(most: int, groups: int, device: torch.device) -> Tensor:
    """``[M]``: 1 where a slot is a negative, else 0."""
    return torch.arange(2, device=device).repeat_interleave(most).repeat(groups)


def visible(size: int, groups: int, queries: int, device: torch.device) -> Tensor:
    """Who may attend to whom: ``[M + N, M + N]`` bool, row attends to column, denoising queries first.

    Args:
        size: M, queries of all groups together.
        groups: number of groups.
        queries: N, queries that are matched; they see only each other, every group sees them and itself.
        device: of the result.
    """
    each = size // groups
    group = torch.cat([torch.arange(groups, device=device).repeat_interleave(each), torch.full((queries,), -1, device=device)])
    return (group[:, None] == group[None]) | (group[None] == -1)
