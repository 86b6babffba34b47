"""Makes the contrastive denoising queries of DINO (Zhang et al., ICLR 2023, section 3.2): noisy targets that the decoder must restore.

A group holds every target twice. The positive copy has little noise and must find the target again. The negative copy has more noise
and must be classified as background. A group sees no other group, and the matched queries see no group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from workbench.datasets.targets import TargetBatch


@dataclass(frozen=True)
class NoisedTargets:
    """Denoising queries of a batch: ``groups`` times S positives followed by S negatives, S being the largest number of targets.

    Attributes:
        labels: ``[B, M]`` int64, class after noise.
        boxes: ``[B, M, 4]`` cxcywh, after noise.
        real: ``[B, M]`` bool, False in the slots that an image with fewer targets leaves empty.
        match: ``[B, M]`` int64, the target that a query must restore; -1 for negatives and empty slots.
        groups: Number of groups.
    """

    labels: Tensor
    boxes: Tensor
    real: Tensor
    match: Tensor
    groups: int


def group_count(number: int, most: int) -> int:
    """Returns how many groups make about ``number`` positives in total; at least one.

    Args:
        number: wanted number of positive queries (``dn_number``).
        most: number of targets in the image with the most targets.
    """
    return max(1, number // most) if most else 1


@torch.no_grad()
def noised_targets(targets: TargetBatch, classes: int, number: int, label_noise: float, box_noise: float) -> NoisedTargets:
    """Draws denoising queries with noise from torch's global generator.

    A class is replaced by a random one with probability ``label_noise / 2`` (DN-DETR, Li et al., CVPR 2022, section 4.2, as released).
    Each edge of a box moves outwards or inwards by u · ``box_noise`` · half the box's width or height. u is uniform in 0..1 for
    positives and in 1..2 for negatives (DINO, section 3.2 with lambda_1 = ``box_noise``, lambda_2 = 2 lambda_1). Boxes are clipped to
    the image.

    Args:
        targets: targets of the batch; those that must not be matched are left out.
        classes: number of classes C.
        number: see ``group_count``.
        label_noise: strength of the class noise, 0..1.
        box_noise: strength of the box noise; 0 moves nothing.
    """
    device = targets.boxes.device
    counts = targets.valid.sum(1)
    most = int(counts.max()) if counts.numel() else 0
    groups = group_count(number, most)
    # matchable targets first, in their original order
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
    """Returns ``[M]``: 1 where a slot holds a negative, else 0."""
    return torch.arange(2, device=device).repeat_interleave(most).repeat(groups)


def visible(size: int, groups: int, queries: int, device: torch.device) -> Tensor:
    """Returns the attention mask ``[M + N, M + N]`` bool: True where the row may attend to the column, denoising queries first.

    Args:
        size: M, number of denoising queries in all groups together.
        groups: number of groups.
        queries: N, number of matched queries. They see only each other; every group sees them and itself.
        device: device of the result.
    """
    each = size // groups
    group = torch.cat([torch.arange(groups, device=device).repeat_interleave(each), torch.full((queries,), -1, device=device)])
    return (group[:, None] == group[None]) | (group[None] == -1)
