"""Faster R-CNN answers and learns as torchvision's does, and keeps the contract of the other families."""

import copy
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from tests.detectors.torchvision_faster_rcnn import targets_of, twin_of
from tests.detectors.two_stage_examples import CLASSES, PADDED, SIZE, fresh, run, shared, some_targets
from tests.examples import SPEC, images_of
from tests.families import tiny
from workbench.detectors.dense_detector import pixel_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.faster_rcnn import FasterRcnn
from workbench.detectors.output import dense_output, two_stage_output
from workbench.detectors.registry import load_detector, parameter_count
from workbench.training.candidates import sources

NAMES = {"class": "loss_classifier", "bbox": "loss_box_reg", "objectness": "loss_objectness", "rpn_bbox": "loss_rpn_box_reg"}


# beside torchvision


@pytest.mark.parametrize("changes", [{}, {"head_convs": 2, "anchor_scales": [2.0, 4.0], "score_threshold": 0.2}, {"extra_levels": 0}])
def test_detections_are_those_of_torchvision(changes: dict[str, Any]):
    detector = tiny("faster_rcnn", **changes)
    assert isinstance(detector, FasterRcnn)
    images, padding = images_of(SIZE, SIZE, SIZE)
    with torch.no_grad():
        ours = detector.detections(detector(images, padding), torch.tensor([SIZE] * 3), k=100)
        theirs = twin_of(detector, SIZE)(list(images))
    assert min(len(found.scores) for found in ours) > 5
    for own, wanted in zip(ours, theirs, strict=True):
        assert torch.equal(own.labels + 1, wanted["labels"])
        torch.testing.assert_close(own.scores, wanted["scores"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own.boxes, wanted["boxes"], atol=1e-3, rtol=1e-5)


def test_the_level_that_only_proposes_is_pooled_as_in_torchvision():
    neck = shared().neck
    theirs = FeaturePyramidNetwork([8, 16], 16, LastLevelMaxPool())  # pyright: ignore[reportArgumentType] - its hint says None
    theirs.load_state_dict(neck.fpn.state_dict())
    features = [torch.randn(2, 8, 13, 22), torch.randn(2, 16, 7, 11)]
    ours, wanted = neck(features), theirs(OrderedDict(zip("01", features, strict=True)))
    assert [level.shape[-2:] for level in ours] == [(13, 22), (7, 11), (4, 6)]
    assert all(torch.equal(own, other) for own, other in zip(ours, wanted.values(), strict=True))


def test_the_original_size_scales_the_detections_alone():
    detector = shared()
    output = run(detector, SIZE)
    small, large = (detector.detections(output, torch.tensor([size]))[0] for size in (SIZE, (128, 288)))
    assert torch.equal(small.queries, large.queries) and torch.equal(small.scores, large.scores)
    torch.testing.assert_close(small.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]), large.boxes)


@pytest.mark.parametrize("counts", [(2, 1), (5, 0), (0, 0)])
def test_training_losses_and_gradients_are_those_of_torchvision(counts: tuple[int, int]):
    detector = fresh(True)
    images, _ = images_of(SIZE, SIZE)
    targets = some_targets(*counts)
    other = copy.deepcopy(detector)
    twin = twin_of(other, SIZE)
    output = run(detector, SIZE, SIZE, targets=targets)
    ours = detector.losses(output, targets, 1.0)
    torch.manual_seed(7)
    theirs = twin(list(images), targets_of(targets, output.first.sides))
    for own, name in NAMES.items():
        torch.testing.assert_close(ours[own], theirs[name], atol=1e-5, rtol=1e-5)
    torch.stack(list(ours.values())).sum().backward()
    torch.stack(list(theirs.values())).sum().backward()
    for own, wanted in zip(detector.backbone.parameters(), other.backbone.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad, atol=1e-5, rtol=1e-3)


def test_the_losses_of_the_second_stage_are_those_of_torchvision_on_equal_inputs():
    detector = fresh()
    targets = some_targets(2, 3)
    output = run(detector, SIZE, SIZE)
    match = torch.tensor([0, -1, 1, -2, 0, -1]).expand(2, 6)
    context = replace(output.context, rois=output.context.rois[:, :6], numbers=output.context.numbers[:, :6])
    few = replace(output, logits=output.logits[:, :, :6], context=context)
    ours = detector.losses(few, targets, 1.0, match[None])
    kept = match[0] > -2
    logits, deltas = few.logits[0][:, kept].flatten(0, 1), context.numbers[:, kept].flatten(0, 1)
    places = match[:, kept].clamp(min=0)
    rois = context.rois[:, kept]
    wanted = [detector.coder.encode_single(pixel_boxes(targets.boxes, context.sides)[i, places[i]], rois[i]) for i in range(2)]
    labels = [torch.where(match[i, kept] >= 0, targets.labels[i, places[i]] + 1, 0) for i in range(2)]
    numbers = torch.cat([torch.zeros(len(deltas), 4), deltas.flatten(1)], 1)
    theirs = fastrcnn_loss(logits.roll(1, 1), numbers, labels, wanted)
    torch.testing.assert_close((ours["class"], ours["bbox"]), theirs, atol=1e-5, rtol=1e-5)


# the contract


@pytest.mark.parametrize("training", [False, True])
def test_the_output_has_the_shapes_of_the_contract(training: bool):
    detector = fresh(training)
    targets = some_targets(2, 1)
    output = run(detector, SIZE, (64, 80), targets=targets)
    count = output.logits.shape[2]
    assert output.logits.shape == (1, 2, count, CLASSES + 1) and output.activation == "softmax"
    assert output.boxes.shape == (1, 2, count, 4) and output.proposals.shape == (2, count, 4)
    assert output.class_boxes is not None and output.class_boxes.shape == (2, count, CLASSES, 4)
    assert output.valid is not None and output.valid.shape == (2, count)
    first = dense_output(output.first)
    anchors = 3 * (16 * 24 + 8 * 12 + 4 * 6)
    assert first.logits.shape == (1, 2, anchors, 1) and first.boxes.shape == (1, 2, anchors, 4) and len(first.grid.level) == anchors
    assert [(level.stride, *level.logits.shape[1:]) for level in first.maps] == [(4, 3, 16, 24), (8, 3, 8, 12), (16, 3, 4, 6)]
    assert [level.stride for level in output.neck] == [4, 8, 16] and [level.stride for level in output.backbone] == [4, 8]
    assert [level.stride for level in output.head] == [4, 8], "the pooled level only proposes"
    assert detector.level_channels("head") == {4: 16, 8: 16}
    match = detector.assign(output, targets)
    assert match.shape == (1, 2, count) and match.dtype == torch.int64
    assert (sources(output) == -1).all()


def test_the_box_of_a_candidate_is_that_of_its_best_class():
    output = run(shared(), SIZE, SIZE)
    assert output.class_boxes is not None
    for image in range(2):
        for candidate in range(output.logits.shape[2]):
            best = int(output.logits[0, image, candidate, :CLASSES].argmax())
            assert torch.equal(output.boxes[0, image, candidate], output.class_boxes[image, candidate, best])


@pytest.mark.parametrize("training", [False, True])
def test_classifying_the_own_proposals_again_gives_the_own_output(training: bool):
    detector = fresh(training)
    output = run(detector, SIZE, (64, 80), targets=some_targets(2, 1))
    logits, boxes = detector.classify(output.proposals, output.context)
    torch.testing.assert_close(logits, output.logits[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(boxes, output.boxes[0], atol=1e-5, rtol=1e-4)


def test_permuted_boxes_give_permuted_answers_and_gradients_reach_the_pyramid():
    detector = fresh()
    output = run(detector, SIZE, SIZE)
    boxes = some_targets(5, 5).boxes
    order = torch.tensor([3, 0, 4, 1, 2])
    logits, found = detector.classify(boxes, output.context)
    moved_logits, moved = detector.classify(boxes[:, order], output.context)
    torch.testing.assert_close(moved_logits, logits[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved, found[:, order], atol=1e-5, rtol=1e-4)
    (logits.square().sum() + found.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in (*detector.roi_head.parameters(), *detector.backbone.parameters()))


def test_an_image_answers_the_same_alone_and_in_a_batch_of_any_order():
    detector = shared()
    images, padding = images_of(SIZE, SIZE, SIZE)
    order = [2, 0, 1]
    with torch.no_grad():
        together, permuted = detector(images, padding), detector(images[order], padding[order])
        for place, index in enumerate(order):
            alone = detector(images[index : index + 1], padding[index : index + 1])
            count = int(alone.valid.sum())
            for other, row in ((together, index), (permuted, place)):
                assert int(other.valid[row].sum()) == count and other.valid[row, :count].all()
                torch.testing.assert_close(alone.proposals[0], other.proposals[row, :count], atol=5e-5, rtol=1e-4)
                torch.testing.assert_close(alone.logits[:, 0], other.logits[:, row, :count], atol=5e-5, rtol=1e-4)
                torch.testing.assert_close(alone.boxes[:, 0], other.boxes[:, row, :count], atol=5e-5, rtol=1e-4)


def test_targets_change_nothing_in_inference():
    alone, with_targets = (run(shared(), SIZE, SIZE, targets=targets) for targets in (None, some_targets(2, 1)))
    assert torch.equal(alone.logits, with_targets.logits) and with_targets.context.anchors is None


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_every_loss_has_a_weight_and_every_parameter_is_trained(norm: str):
    detector = tiny("faster_rcnn", head_norm=norm, head_groups=4, extra_from="pyramid").train()
    targets = some_targets(2, 1)
    output = two_stage_output(run(detector, *PADDED[:2], targets=targets))  # pyright: ignore[reportArgumentType]
    losses = detector.losses(output, targets, 3.0)
    assert set(losses) == set(detector.loss_weights) == {"class", "bbox", "objectness", "rpn_bbox"}
    assert all(torch.isfinite(value) and value.ndim == 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


def test_a_saved_detector_loads_with_equal_outputs(tmp_path: Path):
    shared().save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert isinstance(loaded, FasterRcnn) and loaded.spec == SPEC and loaded.config == shared().config
    one, two = run(shared(), *PADDED), run(loaded, *PADDED)
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes)


def test_a_reset_head_knows_the_new_classes(tmp_path: Path):
    detector = fresh()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    spec = InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std)
    made = detector.reset_classes(spec)
    output = run(detector, SIZE)
    assert output.logits.shape[-1] == 6 and output.class_boxes is not None and output.class_boxes.shape[-2] == 5
    after = detector.state_dict()
    changed = {name for name, value in after.items() if value.shape != before[name].shape or not torch.equal(value, before[name])}
    assert changed == set(made) == {"class_head.weight", "class_head.bias", "box_head.weight", "box_head.bias"}
    detector.save(tmp_path)
    assert torch.equal(run(load_detector(tmp_path).eval(), SIZE).logits, output.logits)  # pyright: ignore[reportArgumentType]


def test_published_settings_have_the_parameters_of_torchvision():
    # torchvision gives 41,755,286 with 91 columns; it freezes the 53,120 numbers of BatchNorm and has a box for no-object
    assert parameter_count("faster_rcnn", 90) == 41_755_286 + 53_120 - 4 * 1025
