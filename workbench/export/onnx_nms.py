"""Puts non-maximum suppression into an ONNX graph.

How many boxes a suppression leaves depends on their values, so torch cannot trace it with a fixed shape. Here it is one operation that says
for each of a fixed number of boxes whether it is left; ``TRANSLATIONS`` expresses it by ONNX's NonMaxSuppression (since opset 11).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from workbench.boxes import cxcywh_to_xyxy
from workbench.detectors.suppression import Suppression


@torch.library.custom_op("workbench::kept_boxes", mutates_args=())
def kept_boxes(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    """Returns ``[B, P]`` float32, 1 for a box that a suppression within each class leaves and 0 for the others.

    Args:
        boxes: ``[B, P, 4]`` xyxy.
        scores: ``[B, C, P]``; a box takes part in the suppression of a class where its score is above 0.
        threshold: IoU above which the worse of two boxes is left out.
        most: highest number of boxes of a class that are left.
    """
    kept = torch.zeros_like(boxes[..., 0])
    for image, of_image in enumerate(scores):
        for score in of_image:
            part = (score > 0).nonzero()[:, 0]
            kept[image, part[nms(boxes[image, part], score[part], threshold)[:most]]] = 1.0
    return kept


@kept_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    return torch.empty_like(boxes[..., 0])


def translations() -> dict[Any, Callable[..., Any]]:
    """Returns how ``torch.onnx.export`` writes ``kept_boxes``, by the operation."""
    import onnx
    import onnxscript

    op: Any = onnxscript.opset18

    def one(value: float) -> Any:
        kind = onnx.TensorProto.INT64 if isinstance(value, int) else onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor("", kind, [1], [value])

    def written(boxes: Any, scores: Any, threshold: float, most: int) -> Any:
        limit, iou, least = (op.Constant(value=one(value)) for value in (most, threshold, 0.0))
        image, _, pair = (op.Gather(op.NonMaxSuppression(boxes, scores, limit, iou, least), [column], axis=1) for column in range(3))
        nothing = op.ConstantOfShape(op.Shape(boxes, start=0, end=2), value=one(0.0))
        places = op.Concat(image, pair, axis=1)
        ones = op.ConstantOfShape(op.Shape(places, start=0, end=1), value=one(1.0))
        return op.ScatterND(nothing, places, ones)

    return {torch.ops.workbench.kept_boxes.default: written}


def chosen_detections(scores: Tensor, boxes: Tensor, rule: Suppression, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses detections as ``suppressed`` does, in tensors of fixed sizes with D <= ``most`` places for each image.

    Args:
        scores: ``[B, N, C]``, 0 for a candidate that does not exist.
        boxes: ``[B, N, 4]`` cxcywh in 0..1, or ``[B, N, C, 4]`` with a box for each class.
        rule: what is left out.
        most: highest number of detections of an image.

    Returns:
        Scores ``[B, D]``, descending; labels ``[B, D]`` int64; boxes ``[B, D, 4]`` xyxy in 0..1, inside the image; and the number of
        detections ``[B]`` int64. Places behind it have the score 0, the label -1 and a box of zeros.
    """
    if boxes.ndim == 4:
        score, label, corners, kept = _of_each_class(scores, boxes, rule, most)
    else:
        score, label, corners, kept = _of_each_level(scores, boxes, rule, most)
    top, place = (score * kept).topk(min(most, kept.shape[1]), dim=1)
    found = top > 0
    corners = corners.gather(1, place[..., None].expand(-1, -1, 4)).masked_fill(~found[..., None], 0.0)
    return top, label.gather(1, place).masked_fill(~found, -1), corners, found.sum(1)


def _of_each_level(scores: Tensor, boxes: Tensor, rule: Suppression, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns score, label, xyxy box and what a suppression leaves of the best pairs of each level ``[B, P]``."""
    classes, start = scores.shape[-1], 0
    best: list[Tensor] = []
    pairs: list[Tensor] = []
    for count in rule.counts:
        score, pair = scores[:, start : start + count].flatten(1).topk(min(rule.candidates, count * classes), dim=1)
        best.append(score)
        pairs.append(pair + start * classes)
        start += count
    score, pair = torch.cat(best, 1), torch.cat(pairs, 1)
    candidate, label = pair // classes, pair % classes
    corners = cxcywh_to_xyxy(boxes).clamp(0, 1).gather(1, candidate[..., None].expand(-1, -1, 4))
    score = _above(score, corners, rule)
    of_class = label[:, None] == torch.arange(classes, device=label.device)[:, None]
    return score, label, corners, kept_boxes(corners, torch.where(of_class, score[:, None], 0.0), rule.nms_threshold, most)


def _of_each_class(scores: Tensor, boxes: Tensor, rule: Suppression, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the same of all pairs, if every class has boxes of its own: each class is suppressed as if it were an image."""
    batch, count, classes = scores.shape
    corners = cxcywh_to_xyxy(boxes).clamp(0, 1)
    score, corners = _above(scores, corners, rule).transpose(1, 2), corners.transpose(1, 2)
    kept = kept_boxes(corners.flatten(0, 1), score.flatten(0, 1)[:, None], rule.nms_threshold, most).view(batch, classes * count)
    label = torch.arange(classes, device=scores.device)[:, None].expand(classes, count).flatten().expand(batch, -1)
    return score.flatten(1), label, corners.flatten(1, 2), kept


def _above(score: Tensor, corners: Tensor, rule: Suppression) -> Tensor:
    """Returns the scores, with 0 where the rule leaves a box out whatever the others are."""
    large = (corners[..., 2:] - corners[..., :2] >= rule.smallest).all(-1)
    return torch.where((score > rule.score_threshold) & large, score, 0.0)
