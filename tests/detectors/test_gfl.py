"""GFL: its losses equal cases worked out by hand and loops; its boxes are the expectations of its distributions."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from tests.examples import SPEC, batch_of, images_of
from tests.families import tiny
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.atss import atss_assignment
from workbench.detectors.dense_detector import pixel_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.gfl import Gfl, distribution_focal_loss, expected_distances, quality_focal_loss
from workbench.detectors.output import DenseOutput
from workbench.detectors.registry import load_detector

SIZES = ((64, 96), (64, 80))
LAST = 6


def detector(seed: int = 0) -> Gfl:
    made = tiny("gfl", seed)
    assert isinstance(made, Gfl)
    return made


def some_targets(*counts: int) -> TargetBatch:
    return batch_of(counts, len(SPEC.classes), torch.Generator().manual_seed(1))


def test_quality_focal_loss_by_hand():
    # at z = 0 the probability is a half: |0.8 - 0.5|^2 ln 2 for a positive of IoU 0.8, 0.5^2 ln 2 for a negative
    found = quality_focal_loss(torch.zeros(2), torch.tensor([0.8, 0.0]))
    assert found.tolist() == pytest.approx([0.09 * math.log(2), 0.25 * math.log(2)])
    # p = 3/4: |1 - 3/4|^2 ln(4/3); a score that equals the IoU costs nothing
    found = quality_focal_loss(torch.tensor([math.log(3.0)] * 2), torch.tensor([1.0, 0.75]))
    assert found.tolist() == pytest.approx([math.log(4 / 3) / 16, 0.0], abs=1e-7)


def test_distribution_focal_loss_by_hand():
    logits = torch.tensor([0.0, math.log(2), math.log(4)])  # probabilities 1/7, 2/7, 4/7
    found = distribution_focal_loss(logits.expand(4, 3), torch.tensor([0.0, 0.5, 1.0, 1.25]))
    wanted = [math.log(7), 0.5 * math.log(7) + 0.5 * math.log(3.5), math.log(3.5), 0.75 * math.log(3.5) + 0.25 * math.log(7 / 4)]
    assert found.tolist() == pytest.approx(wanted)
    assert float(expected_distances(logits)) == pytest.approx(2 / 7 + 2 * 4 / 7)


def test_boxes_lie_at_the_expected_distances_around_the_first_pixel_of_each_cell():
    with torch.no_grad():
        output = detector()(*images_of(*SIZES))
    assert output.box_distribution is not None and output.box_distribution.shape == (1, 2, 504, 4, LAST + 1)
    assert [level.boxes.shape[1] for level in output.maps] == [4 * (LAST + 1)] * 3
    pixels = cxcywh_to_xyxy(output.boxes[0]) * output.sides.repeat(1, 2)[:, None]
    for image, level, cell in ((0, 0, 5), (1, 1, 10), (1, 2, 3)):
        start = (0, 16 * 24, 16 * 24 + 8 * 12)[level]
        width, stride = (24, 12, 6)[level], (4, 8, 16)[level]
        x, y = stride * (cell % width), stride * (cell // width)
        numbers = output.maps[level].boxes[image, :, cell // width, cell % width].view(4, LAST + 1)
        left, top, right, bottom = (float((numbers.softmax(-1) * torch.arange(LAST + 1)).sum(-1)[edge]) * stride for edge in range(4))
        assert pixels[image, start + cell].tolist() == pytest.approx([x - left, y - top, x + right, y + bottom], abs=1e-3)
        assert torch.equal(output.box_distribution[0, image, start + cell], numbers)
        assert output.grid.anchors[start + cell].tolist() == [x - 2 * stride, y - 2 * stride, x + 2 * stride, y + 2 * stride]
    assert "box_distribution" in Gfl.provides and Gfl.geometric


def test_the_assignment_is_atss_without_padding_and_regions():
    model, targets = detector(), some_targets(2, 3)
    regions = torch.zeros(2, 1, 4)
    regions[0, 0] = torch.tensor([0.25, 0.5, 0.5, 1.0])
    output = model(*images_of(*SIZES))
    match = model.assign(output, replace(targets, regions=regions))
    plain = atss_assignment(output.grid, output.valid, pixel_boxes(targets.boxes, output.sides), targets.valid)
    assert torch.equal(match[0] >= 0, plain >= 0) and (plain >= 0).any()
    x = output.grid.centres[:, 0]
    assert torch.equal(match[0, 1] == -2, x >= 80)
    assert torch.equal(match[0, 0] == -2, (x < 48) & (plain[0] < 0))
    changed = replace(output, logits=output.logits + 1, boxes=output.boxes * 0.5)
    assert torch.equal(model.assign(changed, targets), model.assign(output, targets)), "the assignment is geometric"


def looped(output: DenseOutput, targets: TargetBatch, match: Tensor) -> dict[str, float]:
    """The three terms with loops over candidates, classes, edges and bins."""
    assert output.box_distribution is not None
    terms, weights, count = {"class": 0.0, "giou": 0.0, "dfl": 0.0}, 0.0, 0
    pixels = cxcywh_to_xyxy(output.boxes[0]) * output.sides.repeat(1, 2)[:, None]
    wanted = cxcywh_to_xyxy(targets.boxes) * output.sides.repeat(1, 2)[:, None]
    for b, n in torch.cartesian_prod(torch.arange(2), torch.arange(match.shape[1])).tolist():
        target = int(match[b, n])
        if target == -2:
            continue
        quality = float(box_iou(pixels[b, n][None], wanted[b, target][None])) if target >= 0 else 0.0
        for c in range(len(SPEC.classes)):
            p = 1 / (1 + math.exp(-float(output.logits[0, b, n, c])))
            q = quality if target >= 0 and int(targets.labels[b, target]) == c else 0.0
            terms["class"] += (q - p) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p))
        if target < 0:
            continue
        count += 1
        weight = float(output.logits[0, b, n].sigmoid().max())
        weights += weight
        terms["giou"] += weight * (1 - float(generalized_box_iou(pixels[b, n][None], wanted[b, target][None])))
        (x, y), stride = output.grid.centres[n].tolist(), int(output.grid.stride[n])
        left, top, right, bottom = wanted[b, target].tolist()
        for edge, distance in enumerate((x - left, y - top, right - x, bottom - y)):
            distance = min(max(distance / stride, 0.0), LAST - 0.1)
            p = output.box_distribution[0, b, n, edge].softmax(-1).tolist()
            low = int(distance)
            terms["dfl"] -= weight * ((low + 1 - distance) * math.log(p[low]) + (distance - low) * math.log(p[low + 1])) / 4
    return {"class": terms["class"] / count, "giou": terms["giou"] / weights, "dfl": terms["dfl"] / weights}


def test_losses_equal_loops_over_candidates_edges_and_bins():
    model, targets = detector(), some_targets(2, 3)
    with torch.no_grad():
        output = model(*images_of(*SIZES))
    match = model.assign(output, targets)
    losses = model.losses(output, targets, 1.0)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(looped(output, targets, match[0]), rel=1e-4)
    assert model.loss_weights == {"class": 1.0, "giou": 2.0, "dfl": 0.25}
    assert all(torch.equal(value, losses[name]) for name, value in model.losses(output, targets, 1.0, match).items())


def test_the_box_losses_do_not_train_the_scores_and_the_class_loss_not_the_boxes():
    model, targets = detector(), some_targets(2, 3)
    losses = model.losses(model(*images_of(*SIZES)), targets, 1.0)
    (losses["giou"] + losses["dfl"]).backward(retain_graph=True)
    assert model.class_head.weight.grad is None and model.box_head.weight.grad is not None and model.scales.grad is not None
    model.zero_grad()
    losses["class"].backward()
    assert model.class_head.weight.grad is not None and model.box_head.weight.grad is None


def test_without_positives_the_classes_learn_background_and_the_boxes_nothing():
    model, targets = detector().train(), some_targets(0, 0)
    losses = model.losses(model(*images_of(*SIZES)), targets, 1.0)
    assert losses["giou"] == 0 and losses["dfl"] == 0 and losses["class"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_ignored_candidates_cost_nothing():
    model, targets = detector(), some_targets(2, 3)
    output = model(*images_of(*SIZES))
    match = model.assign(output, targets)
    ignored = (match[0] == -2).nonzero()
    assert len(ignored) > 50
    louder = output.logits.clone()
    louder[0, ignored[:, 0], ignored[:, 1]] += 5.0
    assert model.losses(replace(output, logits=louder), targets, 1.0, match)["class"] == model.losses(output, targets, 1.0, match)["class"]


def test_an_image_answers_and_is_assigned_the_same_alone_and_in_a_batch():
    model, targets = detector(), some_targets(2, 3)
    images, padding = images_of((64, 96), (64, 96))
    with torch.no_grad():
        together = model(images, padding)
        for index in range(2):
            alone = model(images[index : index + 1], padding[index : index + 1])
            torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(alone.box_distribution[:, 0], together.box_distribution[:, index], atol=5e-5, rtol=1e-4)
            assert torch.equal(model.assign(alone, targets[index : index + 1])[:, 0], model.assign(together, targets)[:, index])


def test_new_classes_and_a_copy_on_disk_keep_the_boxes(tmp_path: Path):
    model = copy.deepcopy(detector())
    before = model(*images_of(*SIZES))
    assert model.reset_classes(InputSpec(("cat", "dog"), SPEC.mean, SPEC.std)) == ["class_head.weight", "class_head.bias"]
    model.save(tmp_path)
    after = load_detector(tmp_path).eval()(*images_of(*SIZES))
    assert torch.equal(after.boxes, before.boxes) and after.logits.shape[-1] == 2
    assert isinstance(after, DenseOutput) and after.box_distribution is not None
