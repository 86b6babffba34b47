"""What a two-stage detector draws and assigns, and odd inputs: padding, crowds, no proposals, no targets, tiny boxes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.models.detection._utils import Matcher

from tests.detectors.two_stage_examples import PADDED, SIZE, fresh, run, shared, some_targets, total, with_crowd
from tests.families import tiny
from workbench.boxes import cxcywh_to_xyxy, pairwise_iou_and_giou
from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.dense_detector import pixel_boxes
from workbench.detectors.faster_rcnn import FasterRcnn, FasterRcnnModelConfig
from workbench.detectors.iou_matching import matched
from workbench.detectors.output import two_stage_output
from workbench.detectors.region_proposals import RegionProposals, drawn
from workbench.training.candidates import chosen_candidates

ALL = torch.ones(1, 3, dtype=torch.bool)


def test_the_sample_is_drawn_from_torch_s_generator_and_keeps_its_shares():
    detector = fresh(True)
    targets = some_targets(30, 40)
    one, again, other = (run(detector, SIZE, SIZE, targets=targets, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.proposals, again.proposals) and torch.equal(one.context.anchors, again.context.anchors)
    assert not torch.equal(one.context.anchors, other.context.anchors)
    for output in (one, other):
        match = detector.assign(output, targets)[0]
        assert (match > -2).sum(1).tolist() == [32, 32] and (match >= 0).sum(1).tolist() == [8, 8]
        anchors = output.context.anchors
        assert (anchors > -2).sum(1).tolist() == [32, 32] and (anchors >= 0).sum(1).tolist() == [16, 16]


def test_losses_of_one_output_are_the_same_each_time():
    detector = fresh(True)
    targets = some_targets(2, 1)
    output = run(detector, SIZE, SIZE, targets=targets)
    one, two = (detector.losses(output, targets, 1.0) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_few_targets_are_among_the_sample_themselves():
    detector = fresh(True)
    targets = some_targets(2, 1)
    output = run(detector, SIZE, SIZE, targets=targets)
    for image, count in enumerate((2, 1)):
        own = cxcywh_to_xyxy(targets.boxes[image, :count])
        iou, _ = pairwise_iou_and_giou(own, cxcywh_to_xyxy(output.proposals[image]))
        assert (iou.amax(1) > 0.999).all()
    assert set(detector.assign(output, targets)[0, 0].tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("training", [False, True])
def test_a_proposal_learns_the_target_that_it_overlaps_most(training: bool):
    detector = fresh(training)
    targets = with_crowd()
    output = run(detector, *PADDED[1:], targets=targets)
    match = detector.assign(output, targets)[0]
    rois, boxes, regions = output.context.rois, pixel_boxes(targets.boxes, output.context.sides), targets.regions
    assert regions is not None and output.valid is not None
    regions = pixel_boxes(regions, output.context.sides)
    for image in range(2):
        iou, _ = pairwise_iou_and_giou(rois[image], boxes[image])
        for candidate in range(rois.shape[1]):
            overlaps = [float(value) if ok else -1.0 for value, ok in zip(iou[candidate], targets.valid[image], strict=True)]
            best = max(range(len(overlaps)), key=overlaps.__getitem__)
            x, y = (rois[image, candidate, :2] + rois[image, candidate, 2:]) / 2
            crowded = any(a <= x < c and b <= y < d for a, b, c, d in regions[image])
            wanted = best if overlaps[best] >= 0.5 else -2 if crowded else -1
            assert match[image, candidate] == (wanted if output.valid[image, candidate] else -2)
    if not training:
        assert {-2, -1} <= set(match[0].tolist()) and -2 in match[0][output.valid[0]]


def test_no_anchor_or_proposal_of_a_crowd_region_is_drawn_as_background():
    detector = fresh(True)
    output = run(detector, SIZE, SIZE, targets=with_crowd())
    centres = output.first.grid.centres
    inside = (centres[:, 0] >= 0) & (centres[:, 0] < 48)
    anchors = output.context.anchors
    assert not (anchors[0, inside] == -1).any() and (anchors[0, ~inside] == -1).any() and (anchors[1, inside] == -1).any()
    assert output.valid is not None
    x = output.proposals[0, output.valid[0], 0]
    match = detector.assign(output, with_crowd())[0, 0, output.valid[0]]
    assert (match > -2).all() and (x[match == -1] >= 0.5).all()


def test_anchors_learn_by_torchvision_s_matcher_among_those_in_the_image():
    detector = fresh(True)
    targets = some_targets(3, 2)
    output = run(detector, SIZE, (40, 80)).first
    assert output.valid is not None
    boxes = pixel_boxes(targets.boxes, output.sides)
    found = matched(detector.rpn.matcher, output.grid.anchors.expand(2, -1, -1), output.valid, boxes, targets.valid)
    for image, count in enumerate((3, 2)):
        here = output.valid[image]
        iou, _ = pairwise_iou_and_giou(boxes[image, :count], output.grid.anchors[here])
        assert torch.equal(found[image, here], Matcher(0.7, 0.3, allow_low_quality_matches=True)(iou))
        assert set(found[image, here].tolist()) >= {-1, *range(count)}, "each target has an anchor"


@pytest.mark.parametrize(
    ("valid", "usable", "wanted"),
    [(ALL, ALL, [2, 2, -1]), (torch.tensor([[False, True, True]]), ALL, [-1, 2, -1]), (ALL, ~ALL, [-1, -1, -1])],
    ids=["all", "the best candidate is not valid", "no target may be assigned"],
)
def test_a_target_that_nothing_touches_or_without_area_has_no_candidate(valid: Any, usable: Any, wanted: list[int]):
    candidates = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 9, 10], [50, 50, 60, 60]]])
    boxes = torch.tensor([[[80.0, 80, 90, 90], [5, 5, 5, 9], [0, 0, 10, 10]]])
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    assert matched(matcher, candidates, valid, boxes, usable).tolist() == [wanted]


def test_an_ignored_candidate_is_never_drawn():
    match = torch.tensor([[0, -2, -1, -2], [-2, -2, -2, -2]])
    assert torch.equal(drawn(shared().sampler, match), match)


def test_proposals_lie_in_the_image():
    output = run(shared(), *PADDED)
    assert output.valid is not None
    rois, sides = output.context.rois, output.context.sides
    assert sides.tolist() == [[96, 64], [80, 64], [96, 40]]
    for image in range(3):
        own = rois[image, output.valid[image]]
        assert len(own) > 3 and (own >= 0).all() and (own <= sides[image].repeat(2)).all() and (own[:, 2:] > own[:, :2]).all()


@pytest.mark.parametrize("most", [40, 1000])
def test_an_anchor_in_the_padding_neither_proposes_nor_takes_the_place_of_another(most: int):
    detector = tiny("faster_rcnn", candidates=most, proposals=1000)
    assert isinstance(detector, FasterRcnn)
    first = run(detector, *PADDED).first
    assert first.valid is not None and not first.valid[1:].all()
    hidden = ~first.valid
    pixels = pixel_boxes(first.boxes[0], first.sides)
    # those of the padding are surer than all others, and see a box in the image
    loud = replace(first, logits=first.logits.masked_fill(hidden[None, ..., None], 100.0))
    inside = torch.where(hidden[..., None], torch.tensor([1.0, 1.0, 3.0, 3.0]), pixels)
    for own, wanted in zip(detector.rpn.propose(loud, inside), detector.rpn.propose(first, pixels), strict=True):
        assert torch.equal(own, wanted) and not (own == torch.tensor([1.0, 1.0, 3.0, 3.0])).all(1).any()


def test_an_image_without_proposals_has_one_candidate_that_is_not_valid():
    detector = fresh()
    with torch.no_grad():  # every anchor shrinks to less than the smallest proposal
        assert detector.rpn.box_head.bias is not None
        detector.rpn.box_head.weight.zero_()
        detector.rpn.box_head.bias.copy_(torch.tensor([0.0, 0, -50, -50]).repeat(3))
    output = run(detector, SIZE, SIZE)
    assert output.logits.shape[2] == 1 and output.valid is not None and not output.valid.any()
    assert torch.isfinite(output.logits).all() and torch.isfinite(output.boxes).all()
    assert [len(found.scores) for found in detector.detections(output, torch.tensor([SIZE, SIZE]))] == [0, 0]
    targets = some_targets(2, 0)
    match = detector.assign(output, targets)
    assert (match == -2).all() and torch.isfinite(total(detector, output, targets))
    chosen = chosen_candidates(output, match)
    assert chosen is not None and not chosen.kept.any()
    detector.train()
    trained = run(detector, SIZE, SIZE, targets=targets)
    assert trained.valid is not None and trained.valid.sum(1).tolist() == [2, 0], "the targets themselves are left"
    total(detector, trained, targets).backward()


def test_a_blank_image_has_an_output():
    detector = fresh(True)
    output = two_stage_output(detector.blank_output())
    assert output.logits.shape[2] >= 1 and detector.training


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (200, 1)])
def test_images_without_targets_and_more_targets_than_proposals_train(counts: tuple[int, int]):
    detector = fresh(True)
    targets = some_targets(*counts)
    value = total(detector, run(detector, SIZE, SIZE, targets=targets), targets)
    value.backward()
    assert torch.isfinite(value)
    # each has a gradient, be it 0, which training in several processes waits for
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters())


def test_boxes_far_smaller_than_a_cell_train():
    detector = fresh(True)
    boxes = torch.tensor([[0.5, 0.5, 1e-3, 1e-3], [0.0, 0.0, 1e-5, 1e-5], [0.3, 0.3, 0.0, 0.2]])
    targets = TargetBatch.of([Targets(boxes, torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool))])
    output = run(detector, SIZE, targets=targets)
    value = total(detector, output, targets)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(output.logits).all()
    assert 0 in output.context.anchors, "the nearest anchor learns it, however small the overlap"
    assert 2 not in detector.assign(output, targets), "a box without area is no target"


@pytest.mark.parametrize("size", [(40, 72), (63, 95)])
def test_a_level_is_pooled_at_its_own_scale_whatever_the_sides(size: tuple[int, int]):
    detector = fresh()
    output = run(detector, size)
    assert output.valid is not None
    pooled = detector.pool({str(i): level for i, level in enumerate(output.context.levels)}, list(output.context.rois), [])
    for index, (x0, y0, x1, y1) in enumerate(output.context.rois[0].tolist()):
        area = (x1 - x0) * (y1 - y0)
        level, stride = (0, 4) if area < 24**2 else (1, 8)  # 48 pixels belong to stride 16, 24 to stride 8
        if not 0.99 < area / 24**2 < 1.01:
            wanted = pooled_by_hand(output.context.levels[level][0], [v / stride for v in (x0, y0, x1, y1)])
            torch.testing.assert_close(pooled[index], wanted, atol=1e-4, rtol=1e-3)


def pooled_by_hand(level: torch.Tensor, box: list[float], cells: int = 3, points: int = 2) -> torch.Tensor:
    """RoIAlign (He et al., 2017) of one box in cells: means of points by bilinear interpolation, ``[D, cells, cells]``.

    As in torchvision, a box is at least a cell wide, and a point beyond the level counts as 0.
    """
    height, width = level.shape[-2:]
    x0, y0, x1, y1 = box
    steps = (torch.arange(cells * points) + 0.5) / (cells * points)
    rows, columns = y0 + steps * max(y1 - y0, 1.0), x0 + steps * max(x1 - x0, 1.0)
    inside = (rows <= height)[:, None] & (columns <= width)[None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    top, left = rows.long(), columns.long()
    below, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, across = (rows - top)[:, None], (columns - left)[None]
    upper = level[:, top][:, :, left] * (1 - across) + level[:, top][:, :, right] * across
    lower = level[:, below][:, :, left] * (1 - across) + level[:, below][:, :, right] * across
    return torch.nn.functional.avg_pool2d((upper * (1 - down) + lower * down) * inside, points)


WRONG = [
    {"anchor_scales": []},
    {"anchor_scales": [0.1]},
    {"anchor_ratios": [0.0]},
    {"samples": 0},
    {"head_groups": 3, "head_norm": "group"},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_configuration_is_refused_by_name(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny("faster_rcnn", **wrong)


def test_published_anchors_are_those_of_the_paper_on_a_pyramid():
    config = FasterRcnnModelConfig.model_validate({"backbone": {"name": "resnet18", "levels": [1, 2, 3, 4]}})
    assert config.strides == (4, 8, 16, 32, 64)
    assert RegionProposals(config).generator.sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
