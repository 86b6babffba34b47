"""Computes class losses whose target is the IoU of a matched box with its target, summed over layers, images, queries and classes.

Every function takes logits ``[..., C]``, ``wanted`` (1 at the matched class, 0 elsewhere) and ``quality`` (the IoU there, 0 elsewhere).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

VARIFOCAL_ALPHA = 0.75
VARIFOCAL_GAMMA = 2.0
MATCHABILITY_GAMMA = 1.5
IOU_AWARE_ALPHA = 0.25
IOU_AWARE_GAMMA = 2.0
LEAST_IOU_AWARE_TARGET = 0.01


def varifocal_loss(logits: Tensor, wanted: Tensor, quality: Tensor) -> Tensor:
    """Returns the varifocal loss as RT-DETR and D-FINE use it: negatives weigh alpha p^gamma, positives q.

    See Zhang et al., CVPR 2021, equation 2.
    """
    weight = VARIFOCAL_ALPHA * logits.detach().sigmoid() ** VARIFOCAL_GAMMA * (1 - wanted) + quality
    return F.binary_cross_entropy_with_logits(logits, quality, weight=weight.to(logits.dtype), reduction="sum")


def matchability_loss(logits: Tensor, wanted: Tensor, quality: Tensor) -> Tensor:
    """Returns the matchability-aware loss of DEIM: target q^gamma, negatives weigh p^gamma, positives 1.

    See Huang et al., CVPR 2025, equation 3.
    """
    weight = logits.detach().sigmoid() ** MATCHABILITY_GAMMA * (1 - wanted) + wanted
    return F.binary_cross_entropy_with_logits(logits, quality**MATCHABILITY_GAMMA, weight=weight.to(logits.dtype), reduction="sum")


def iou_aware_loss(logits: Tensor, wanted: Tensor, quality: Tensor) -> Tensor:
    """Returns the IoU-aware cross-entropy of LW-DETR: target t = p^alpha q^(1-alpha), negatives weigh p^2.

    See Chen et al., 2024, section 3.3.
    """
    probability = logits.sigmoid()
    target = probability.detach() ** IOU_AWARE_ALPHA * quality ** (1 - IOU_AWARE_ALPHA)
    target = target.clamp(min=LEAST_IOU_AWARE_TARGET) * wanted
    negative = torch.where(wanted > 0, 1 - target, probability**IOU_AWARE_GAMMA)
    return (target * F.softplus(-logits) + negative * F.softplus(logits)).sum()
