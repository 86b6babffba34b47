"""RepPoints: points become boxes as worked out by hand, features are read at the points, losses equal loops over candidates."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d, sigmoid_focal_loss

from tests.examples import SPEC, batch_of, images_of
from tests.families import tiny
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import pixel_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import DenseOutput
from workbench.detectors.registry import load_detector
from workbench.detectors.reppoints import RepPoints, moment_boxes
from workbench.detectors.reppoints_assignment import overlap_assignment, place_assignment
from workbench.matching import NonFiniteCostError

SIZES = ((64, 96), (64, 80))
# x is 0, 1 and 2 three times each, with the variance 6/8; y is 9 once and 0 otherwise, with the variance 9
BY_HAND = torch.tensor([[0.0, 0], [0, 0], [0, 0], [0, 1], [9, 1], [0, 1], [0, 2], [0, 2], [0, 2]]).flatten()


def detector(seed: int = 0) -> RepPoints:
    made = tiny("reppoints", seed, width=32)
    assert isinstance(made, RepPoints)
    return made


def some_targets(*counts: int) -> TargetBatch:
    return batch_of(counts, len(SPEC.classes), torch.Generator().manual_seed(1))


def test_the_moment_transform_by_hand():
    wide = math.sqrt(0.75)
    assert moment_boxes(BY_HAND, torch.zeros(2)).tolist() == pytest.approx([1 - wide, -2.0, 1 + wide, 4.0])
    scaled = moment_boxes(BY_HAND.expand(2, 3, 18), torch.tensor([math.log(2), math.log(0.5)]))
    assert scaled.shape == (2, 3, 4)
    assert scaled[1, 2].tolist() == pytest.approx([1 - 2 * wide, -0.5, 1 + 2 * wide, 2.5])


def test_a_hundredth_of_the_gradient_reaches_the_scale_of_the_spread():
    spread = torch.tensor([math.log(2), 0.0], requires_grad=True)
    box = moment_boxes(BY_HAND, spread)
    (box[2] + 10 * box[1]).backward()
    assert spread.grad is not None
    assert spread.grad.tolist() == pytest.approx([0.01 * 2 * math.sqrt(0.75), -0.01 * 10 * 3])


def test_points_that_coincide_make_an_empty_box_with_a_finite_gradient():
    points = torch.ones(18, requires_grad=True)
    box = moment_boxes(points, torch.zeros(2))
    assert box.tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    box.square().sum().backward()
    assert points.grad is not None and torch.isfinite(points.grad).all()


def test_the_convolutions_read_the_features_at_the_first_points():
    model = detector()
    points = torch.tensor([[0, 0], [1, 0], [-1, 2], [2, -1], [0, 3], [1, 1], [-2, 0], [0, -3], [5, 5]])
    with torch.no_grad():
        model.first_head.weight.zero_()
        model.first_head.bias.copy_(points.flatten())  # pyright: ignore[reportOptionalMemberAccess]
        level = torch.randn(1, 32, 8, 12)
        head = model.predict([level, torch.randn(1, 32, 4, 6), torch.randn(1, 32, 2, 3)])[0]
        seen, near = model.class_tower(level, 0), model.point_tower(level, 0)
        assert head.first is not None and torch.equal(head.first, points.flatten()[:, None, None].expand(1, 18, 8, 12).float())
        for read, convolution in ((seen, model.class_convolution), (near, model.second_convolution)):
            for row, column in ((3, 4), (0, 11)):
                value = torch.zeros(32)
                for k, (y, x) in enumerate(points.tolist()):
                    if 0 <= row + y < 8 and 0 <= column + x < 12:
                        value += convolution.weight[:, :, k // 3, k % 3] @ read[0, :, row + y, column + x]
                found = convolution(read, head.first - model.regular)[0, :, row, column]
                torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-5)
        logits = model.class_head(F.relu(model.class_convolution(seen, head.first - model.regular)))
        second = model.second_head(F.relu(model.second_convolution(near, head.first - model.regular))) + head.first
    torch.testing.assert_close(head.logits, logits)
    torch.testing.assert_close(head.boxes, second)


def test_a_tenth_of_the_second_stages_gradient_reaches_the_first_points():
    model = detector()
    level = torch.randn(1, 32, 8, 12)
    rest = [torch.randn(1, 32, 4, 6), torch.randn(1, 32, 2, 3)]
    head = model.predict([level, *rest])[0]
    assert model.first_head.bias is not None and head.first is not None
    (own,) = torch.autograd.grad(head.boxes.square().sum() + head.logits.sum(), model.first_head.bias)
    near, seen = model.point_tower(level, 0), model.class_tower(level, 0)
    first = model.first_head(F.relu(model.first_convolution(near)))
    regular = torch.tensor([[y, x] for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)]).view(1, 18, 1, 1)
    moved, read = (
        F.relu(deform_conv2d(features, first - regular, module.weight, padding=(1, 1)))
        for features, module in ((near, model.second_convolution), (seen, model.class_convolution))
    )
    whole = (model.second_head(moved) + first.detach()).square().sum() + model.class_head(read).sum()
    (wanted,) = torch.autograd.grad(whole, model.first_head.bias)
    torch.testing.assert_close(own, 0.1 * wanted, atol=1e-4, rtol=1e-4)


def boxes_by_hand(numbers: Tensor, model: RepPoints, x: float, y: float, stride: int) -> list[float]:
    """The box of 18 numbers, in pixels."""
    down, across = numbers.view(9, 2).unbind(1)
    half = [float(points.std() * model.spread.detach()[axis].exp()) for axis, points in enumerate((across, down))]
    middle = [float(points.mean()) for points in (across, down)]
    low, high = ([stride * (middle[axis] + sign * half[axis]) for axis in (0, 1)] for sign in (-1, 1))
    return [x + low[0], y + low[1], x + high[0], y + high[1]]


def test_both_stages_are_kept_as_points_and_as_boxes():
    model = detector()
    with torch.no_grad():
        output = model(*images_of(*SIZES))
    assert output.first is not None and output.first.shape == (2, 504, 4)
    first, second = (pixel_boxes(boxes, output.sides) for boxes in (output.first, output.boxes[0]))
    for image, level, cell in ((0, 0, 5), (1, 1, 10), (1, 2, 3)):
        start, width, stride = (0, 384, 480)[level], (24, 12, 6)[level], (4, 8, 16)[level]
        row, column = cell // width, cell % width
        head = output.maps[level]
        assert head.first is not None and head.first.shape == head.boxes.shape
        for boxes, numbers in ((first, head.first), (second, head.boxes)):
            wanted = boxes_by_hand(numbers[image, :, row, column], model, column * stride, row * stride, stride)
            assert boxes[image, start + cell].tolist() == pytest.approx(wanted, abs=1e-3)


def test_the_assignment_depends_on_the_boxes_of_the_first_stage_alone():
    model, targets = detector(), some_targets(2, 3)
    output = model(*images_of(*SIZES))
    assert not RepPoints.geometric and output.first is not None and output.valid is not None
    match = model.assign(output, targets)
    first, wanted = (pixel_boxes(boxes, output.sides) for boxes in (output.first, targets.boxes))
    plain = overlap_assignment(first, output.valid, wanted, targets.valid)
    assert torch.equal(match[0], plain.masked_fill(~output.valid, -2))
    assert torch.equal(model.assign(replace(output, boxes=output.boxes * 0.5, logits=output.logits + 1), targets), match)
    moved = output.first.clone()
    moved[0, 0] = targets.boxes[0, 1]
    assert model.assign(replace(output, first=moved), targets)[0, 0, 0] == 1
    moved[1, 7] = torch.nan
    with pytest.raises(NonFiniteCostError, match=r"\(0, 1\)"):
        model.assign(replace(output, first=moved), targets)


def looped(model: RepPoints, output: DenseOutput, targets: TargetBatch, match: Tensor) -> dict[str, float]:
    """The three terms with loops over candidates and coordinates."""
    assert output.first is not None and output.valid is not None
    wanted = cxcywh_to_xyxy(targets.boxes) * output.sides.repeat(1, 2)[:, None]
    place = place_assignment(output.grid, output.valid, wanted, targets.valid)
    terms: dict[str, float] = {}
    for name, found, boxes in (("bbox_first", place, output.first), ("bbox", match, output.boxes[0])):
        pixels, total, count = pixel_boxes(boxes, output.sides), 0.0, 0
        for image, n in (found >= 0).nonzero().tolist():
            unit = 4 * int(output.grid.stride[n])
            count += 1
            for a, b in zip(pixels[image, n].tolist(), wanted[image, found[image, n]].tolist(), strict=True):
                apart = abs(a - b) / unit
                total += 0.5 * apart**2 / 0.11 if apart < 0.11 else apart - 0.055
        terms[name] = total / count
    cost = 0.0
    for image, n in (match > -2).nonzero().tolist():
        wants = torch.zeros(len(SPEC.classes))
        if match[image, n] >= 0:
            wants[targets.labels[image, match[image, n]]] = 1.0
        cost += float(sigmoid_focal_loss(output.logits[0, image, n], wants, alpha=0.25, gamma=2.0, reduction="sum"))
    return terms | {"class": cost / int((match >= 0).sum())}


def test_losses_equal_loops_over_candidates():
    model, targets = detector(), some_targets(2, 3)
    with torch.no_grad():
        output = model(*images_of(*SIZES))
        match = model.assign(output, targets)
        losses = model.losses(output, targets, 1.0)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(looped(model, output, targets, match[0]), rel=1e-4)
    assert model.loss_weights == {"class": 1.0, "bbox_first": 0.5, "bbox": 1.0}
    assert all(torch.equal(value, losses[name]) for name, value in model.losses(output, targets, 1.0, match).items())


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (30, 1)])
def test_every_parameter_trains_whatever_the_number_of_targets(counts: tuple[int, int]):
    model, targets = detector().train(), some_targets(*counts)
    losses = model.losses(model(*images_of(*SIZES)), targets, 1.0)
    assert all(torch.isfinite(value) for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_step_in_bfloat16_is_near_one_in_float32():
    model, targets = detector(), some_targets(2, 3)
    plain = model(*images_of(*SIZES))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*images_of(*SIZES))
        losses = model.losses(rough, targets, 1.0)
    assert rough.boxes.dtype == torch.float32
    torch.testing.assert_close(rough.boxes, plain.boxes, atol=0.1, rtol=0.1)
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())


def test_an_image_answers_the_same_alone_and_in_a_batch():
    model = detector()
    images, padding = images_of((64, 96), (64, 96))
    with torch.no_grad():
        together = model(images, padding)
        for index in range(2):
            alone = model(images[index : index + 1], padding[index : index + 1])
            torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, index], atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(alone.first[0], together.first[index], atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(alone.logits[:, 0], together.logits[:, index], atol=5e-5, rtol=1e-4)


def test_new_classes_and_a_copy_on_disk_keep_the_boxes(tmp_path: Path):
    model = copy.deepcopy(detector())
    before = model(*images_of(*SIZES))
    assert model.reset_classes(InputSpec(("cat", "dog"), SPEC.mean, SPEC.std)) == ["class_head.weight", "class_head.bias"]
    assert model.class_head.kernel_size == (1, 1)
    model.save(tmp_path)
    after = load_detector(tmp_path).eval()(*images_of(*SIZES))
    assert torch.equal(after.boxes, before.boxes) and after.logits.shape[-1] == 2
    assert isinstance(after, DenseOutput) and after.first is not None
