"""Chooses detections among the scored boxes of a detector without queries: the best of each level, without duplicates of one class."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from workbench.boxes import cxcywh_to_xyxy
from workbench.detectors.detector import Detections

_PAIRS = 40_000  # of boxes, that are compared in the time that a call takes


@dataclass(frozen=True)
class Suppression:
    """Rule of a non-maximum suppression within each class.

    Attributes:
        score_threshold: Scores at or below it are left out.
        nms_threshold: IoU above which the worse of two boxes of one class is left out.
        candidates: Highest number of (candidate, class) pairs of each level that go into it.
        counts: Number of candidates of each level, which lie one level after the other; proposals are one level.
        smallest: Share of the image's side below which a clipped box is left out, if one of its own sides is that short.
    """

    score_threshold: float
    nms_threshold: float
    candidates: int
    counts: tuple[int, ...]
    smallest: float = 0.0


def suppressed(scores: Tensor, boxes: Tensor, sizes: Tensor, rule: Suppression, k: int) -> list[Detections]:
    """Returns the at most k best pairs of each image that are left, best first; see ``Detector.detections``.

    Args:
        scores: ``[B, N, C]``, 0 for a candidate that does not exist.
        boxes: ``[B, N, 4]`` cxcywh in 0..1, or ``[B, N, C, 4]`` with a box for each class.
        sizes: ``[B, 2]`` original height and width.
        rule: what is left out.
        k: highest number of pairs per image.
    """
    sides = sizes.to(scores.device)[:, [1, 0, 1, 0]].float()
    return [_of_image(own, where, side, rule, k) for own, where, side in zip(scores, boxes, sides, strict=True)]


def _of_image(scores: Tensor, boxes: Tensor, side: Tensor, rule: Suppression, k: int) -> Detections:
    classes, start = scores.shape[-1], 0
    kept: list[tuple[Tensor, Tensor]] = []
    for count in rule.counts:
        score = scores[start : start + count].flatten()
        above = (score > rule.score_threshold).nonzero()[:, 0]
        best, order = score[above].topk(min(rule.candidates, len(above)))
        kept.append((best, above[order] + start * classes))
        start += count
    score, pair = (torch.cat(parts) for parts in zip(*kept, strict=True))
    candidate, label = pair // classes, pair % classes
    pixels = cxcywh_to_xyxy(boxes[candidate] if boxes.ndim == 2 else boxes[candidate, label]) * side
    pixels = torch.minimum(pixels.clamp(min=0), side)
    if rule.smallest:
        large = (pixels[:, 2:] - pixels[:, :2] >= rule.smallest * side[2:]).all(-1)
        score, candidate, label, pixels = score[large], candidate[large], label[large], pixels[large]
    best = _without_duplicates(pixels, score, label, rule.nms_threshold, classes)[:k]
    return Detections(candidate[best].cpu(), label[best].cpu(), score[best].cpu(), pixels[best].cpu())


def _without_duplicates(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, classes: int) -> Tensor:
    """Returns the indices that torchvision's ``batched_nms`` leaves, best first.

    It compares every box with every other one, of other classes too, if there are at most a thousand. On a processor and with few classes
    a call for each class is several times as fast; evaluating a small student consists of little else.
    """
    if boxes.device.type != "cpu" or len(boxes) ** 2 <= _PAIRS * classes:
        return batched_nms(boxes, scores, labels, threshold)
    parts = [own[nms(boxes[own], scores[own], threshold)] for label in range(classes) if len(own := (labels == label).nonzero()[:, 0])]
    kept = torch.cat(parts).sort().values
    return kept[scores[kept].sort(descending=True, stable=True).indices]
