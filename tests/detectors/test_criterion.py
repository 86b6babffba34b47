"""The set loss is DETR's: equal to transformers' own matcher and losses, and to a sum written by hand."""

import math

import pytest
import torch
from torch import Tensor
from transformers import DeformableDetrConfig, DetrConfig
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss, DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, HungarianMatcher

from tests.examples import random_boxes, random_targets
from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.criterion import set_loss
from workbench.matching import CostWeights, match_targets

CLASSES = 5
LAYERS, QUERIES = 3, 8
TERMS = {"class": "loss_ce", "bbox": "loss_bbox", "giou": "loss_giou"}


def predictions(images: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(LAYERS, images, QUERIES, columns, generator=generator)
    return logits, random_boxes(LAYERS, images, QUERIES, generator=generator)


def labels_of(targets: list[Targets]) -> list[dict[str, Tensor]]:
    return [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]


def as_matching(indices: list[tuple[Tensor, Tensor]]) -> Tensor:
    match = torch.full((len(indices), QUERIES), -1)
    for image, (query, target) in enumerate(indices):
        match[image, query] = target
    return match


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("counts", [[3, 5], [2, 0, 7], [0, 0], [12, 1]], ids=str)
def test_the_sigmoid_matching_and_loss_are_those_of_transformers(counts: list[int], seed: int):
    targets = random_targets(counts, CLASSES, torch.Generator().manual_seed(seed))
    batch = TargetBatch.of(targets)
    logits, boxes = predictions(len(counts), CLASSES, seed)
    match = match_targets(logits, boxes, batch)
    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    for layer in range(LAYERS):
        theirs = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, labels_of(targets))
        assert torch.equal(match[layer], as_matching(theirs))
    config = DeformableDetrConfig(num_labels=CLASSES, class_cost=2, bbox_cost=5, giou_cost=2, auxiliary_loss=True, decoder_layers=LAYERS)
    total, parts, _ = DeformableDetrForObjectDetectionLoss(logits[-1], labels_of(targets), logits.device, boxes[-1], config, logits, boxes)
    ours = set_loss(logits, boxes, match, batch, max(sum(counts), 1))
    for name, their_name in TERMS.items():
        theirs = parts[their_name] + sum(parts[f"{their_name}_{layer}"] for layer in range(LAYERS - 1))
        assert float(ours[name]) == pytest.approx(float(theirs), rel=1e-5, abs=1e-5)
    # transformers gives the class term weight 1 whatever its configuration says
    assert float(ours["class"] + 5 * ours["bbox"] + 2 * ours["giou"]) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [[3, 5], [2, 0, 7], [0, 0]], ids=str)
def test_the_softmax_matching_and_loss_are_those_of_transformers(counts: list[int], seed: int):
    targets = random_targets(counts, CLASSES, torch.Generator().manual_seed(seed))
    batch = TargetBatch.of(targets)
    logits, boxes = predictions(len(counts), CLASSES + 1, seed)
    match = match_targets(logits, boxes, batch, "softmax", CostWeights(1, 5, 2))
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    for layer in range(LAYERS):
        theirs = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, labels_of(targets))
        assert torch.equal(match[layer], as_matching(theirs))
    config = DetrConfig(num_labels=CLASSES, auxiliary_loss=True, decoder_layers=LAYERS, eos_coefficient=0.1)
    total, parts, _ = ForObjectDetectionLoss(logits[-1], labels_of(targets), logits.device, boxes[-1], config, logits, boxes)
    ours = set_loss(logits, boxes, match, batch, max(sum(counts), 1), "softmax")
    for name, their_name in TERMS.items():
        theirs = parts[their_name] + sum(parts[f"{their_name}_{layer}"] for layer in range(LAYERS - 1))
        assert float(ours[name]) == pytest.approx(float(theirs), rel=1e-5, abs=1e-5)
    assert float(ours["class"] + 5 * ours["bbox"] + 2 * ours["giou"]) == pytest.approx(float(total), rel=1e-5)


def test_the_focal_loss_is_the_formula_summed_over_all_queries_and_classes():
    logits, boxes = predictions(1, CLASSES, 3)
    targets = TargetBatch.of(random_targets([2], CLASSES))
    match = torch.full((LAYERS, 1, QUERIES), -1)
    match[0, 0, 4], match[2, 0, 1] = 1, 0
    wanted = 0.0
    for layer in range(LAYERS):
        for query in range(QUERIES):
            for label in range(CLASSES):
                p = 1 / (1 + math.exp(-float(logits[layer, 0, query, label])))
                target = int(match[layer, 0, query])
                hit = target >= 0 and int(targets.labels[0, target]) == label
                wanted += 0.25 * (1 - p) ** 2 * -math.log(p) if hit else 0.75 * p**2 * -math.log(1 - p)
    loss = set_loss(logits, boxes, match, targets, 4.0)
    assert float(loss["class"]) == pytest.approx(wanted / 4, rel=1e-5)
    pairs = [(boxes[0, 0, 4], targets.boxes[0, 1]), (boxes[2, 0, 1], targets.boxes[0, 0])]
    assert float(loss["bbox"]) == pytest.approx(sum(float((a - b).abs().sum()) for a, b in pairs) / 4, rel=1e-5)
    giou = [float(iou_and_giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))[1]) for a, b in pairs]
    assert float(loss["giou"]) == pytest.approx((2 - sum(giou)) / 4, rel=1e-5)


def test_a_batch_without_targets_teaches_no_object_and_no_box():
    logits, boxes = predictions(2, CLASSES, 0)
    logits.requires_grad_(), boxes.requires_grad_()
    targets = TargetBatch.of(random_targets([0, 0], CLASSES))
    loss = set_loss(logits, boxes, match_targets(logits, boxes, targets), targets, 1.0)
    assert not loss["bbox"].any() and not loss["giou"].any()
    sum(loss.values()).backward()
    assert (logits.grad > 0).all(), "every logit is pushed down"
    assert boxes.grad is None or not boxes.grad.any()


def test_a_perfect_prediction_has_no_box_loss_and_next_to_no_class_loss():
    targets = TargetBatch.of(random_targets([3], CLASSES))
    logits = torch.full((1, 1, 3, CLASSES), -20.0)
    logits[0, 0, torch.arange(3), targets.labels[0]] = 20.0
    boxes = targets.boxes[None]
    loss = set_loss(logits, boxes, match_targets(logits, boxes, targets), targets, 3.0)
    assert all(float(value) < 1e-6 for value in loss.values())
