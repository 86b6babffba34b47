"""Mask R-CNN's masks are learned, predicted and pasted as torchvision's are; the rest is Faster R-CNN."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image

from tests.detectors.torchvision_faster_rcnn import targets_of, twin_of
from tests.detectors.two_stage_examples import CLASSES, PADDED, SIZE
from tests.examples import SPEC, batch_of, images_of
from tests.families import tiny
from workbench.datasets.object_masks import decoded
from workbench.datasets.targets import TargetBatch
from workbench.detectors import mask_pasting
from workbench.detectors.detector import InputSpec
from workbench.detectors.faster_rcnn import FasterRcnn
from workbench.detectors.mask_pasting import pasted
from workbench.detectors.mask_rcnn import MaskRcnn
from workbench.detectors.output import two_stage_output
from workbench.detectors.registry import load_detector, parameter_count


@cache
def shared() -> MaskRcnn:
    """One detector; tests that change it take a copy."""
    detector = tiny("mask_rcnn")
    assert isinstance(detector, MaskRcnn)
    return detector


def fresh(training: bool = False) -> MaskRcnn:
    return copy.deepcopy(shared()).train(training)


def blots(targets: TargetBatch, *sizes: tuple[int, int]) -> TargetBatch:
    """The targets with the ellipses in their boxes as masks, on images of these heights and widths."""
    masks: list[Tensor] = []
    for image, (height, width) in enumerate(sizes):
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        cx, cy, w, h = (value[:, None, None] for value in targets.boxes[image].unbind(-1))
        masks.append(((x - cx) / (w / 2)) ** 2 + ((y - cy) / (h / 2)) ** 2 <= 1)
    return replace(targets, masks=tuple(masks))


def some_targets(*counts: int, sizes: tuple[tuple[int, int], ...] = (SIZE, SIZE)) -> TargetBatch:
    return blots(batch_of(counts, CLASSES, torch.Generator().manual_seed(1)), *sizes)


def twin(ours: MaskRcnn) -> MaskRCNN:
    """torchvision's Mask R-CNN with our weights."""
    plain: Any = twin_of(ours, SIZE)
    heads = plain.roi_heads
    heads.mask_roi_pool = copy.deepcopy(ours.mask_pool)
    heads.mask_head = copy.deepcopy(ours.mask_head)
    heads.mask_predictor = copy.deepcopy(ours.mask_predictor)
    last: Any = heads.mask_predictor.mask_fcn_logits
    wider: Any = torch.nn.Conv2d(last.in_channels, CLASSES + 1, 1)  # theirs has no-object first, which is never read
    with torch.no_grad():
        wider.weight[1:], wider.bias[1:] = last.weight, last.bias
    heads.mask_predictor.mask_fcn_logits = wider
    return plain


# beside torchvision


def test_masks_and_detections_are_those_of_torchvision():
    detector = shared()
    images, padding = images_of(SIZE, SIZE)
    with torch.no_grad():
        ours = detector.detections(detector(images, padding), torch.tensor([SIZE] * 2), k=100)
        theirs = twin(detector).eval()(list(images))
    for own, wanted in zip(ours, theirs, strict=True):
        assert len(own.scores) > 5 and own.masks is not None and torch.equal(own.labels + 1, wanted["labels"])
        torch.testing.assert_close(own.boxes, wanted["boxes"], atol=1e-3, rtol=1e-5)
        certain = (wanted["masks"][:, 0] - 0.5).abs() > 1e-4
        pixels = torch.from_numpy(np.stack([decoded(mask, *SIZE) for mask in own.masks]))
        assert pixels.any() and not pixels.all() and torch.equal(pixels[certain], (wanted["masks"][:, 0] > 0.5)[certain])
        assert certain.float().mean() > 0.99


@pytest.mark.parametrize("counts", [(2, 1), (4, 0), (0, 0)])
def test_training_losses_and_gradients_are_those_of_torchvision(counts: tuple[int, int]):
    detector = fresh(True)
    images, padding = images_of(SIZE, SIZE)
    targets = some_targets(*counts)
    theirs_of = twin(copy.deepcopy(detector)).train()
    torch.manual_seed(7)
    output = two_stage_output(detector(images, padding, targets))
    ours = detector.losses(output, targets, 1.0)
    torch.manual_seed(7)
    assert targets.masks is not None
    wanted_targets = [
        {**target, "masks": masks[: len(target["boxes"])].to(torch.uint8)}
        for target, masks in zip(targets_of(targets, output.first.sides), targets.masks, strict=True)
    ]
    theirs = theirs_of(list(images), wanted_targets)
    for own, name in {"mask": "loss_mask", "class": "loss_classifier", "bbox": "loss_box_reg"}.items():
        torch.testing.assert_close(ours[own], theirs[name], atol=1e-5, rtol=1e-5)
    assert bool(ours["mask"] > 0) == bool(sum(counts))
    ours["mask"].backward()
    theirs["loss_mask"].backward()
    heads: Any = theirs_of.roi_heads
    for own, wanted in zip(detector.mask_head.parameters(), heads.mask_head.parameters(), strict=True):
        torch.testing.assert_close(own.grad, wanted.grad, atol=1e-5, rtol=1e-3)


def test_the_loss_of_masks_is_that_of_torchvision_on_equal_inputs():
    detector = fresh()
    targets = some_targets(2, 3)
    with torch.no_grad():
        output = two_stage_output(detector(*images_of(SIZE, SIZE)))
    match = torch.tensor([[0, -1, 1, -2, 0, -1], [2, 1, -1, -1, 0, 2]])
    context = replace(output.context, rois=output.context.rois[:, :6], numbers=output.context.numbers[:, :6])
    few = replace(output, logits=output.logits[:, :, :6], context=context)
    ours = detector.losses(few, targets, 1.0, match[None])["mask"]
    rois = [context.rois[i, match[i] >= 0] for i in range(2)]
    logits = detector.mask_logits(context.levels, rois)
    assert targets.masks is not None
    wide = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
    labels = [own + 1 for own in targets.labels]
    theirs = maskrcnn_loss(wide, rois, [m.to(torch.uint8) for m in targets.masks], labels, [match[i, match[i] >= 0] for i in range(2)])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_pasted_masks_are_those_of_torchvision_pixel_for_pixel(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 28, 28, generator=generator)
    corner, side = torch.rand(40, 2, generator=generator) * 65, torch.rand(40, 2, generator=generator) ** 2 * 80
    # inside the image, as the boxes of detections are; one is hardly a pixel in its last corner, and one is the whole image
    boxes = torch.minimum(torch.cat([corner, corner + side], 1), torch.tensor([83.0, 70.0] * 2))
    boxes[:2] = torch.tensor([[82.99, 69.99, 83.0, 70.0], [0.0, 0.0, 83.0, 70.0]])
    wanted = (paste_masks_in_image(masks[:, None], boxes, (70, 83))[:, 0] > 0.5).numpy()
    for pixels in (1 << 24, 70 * 83 * 3):
        monkeypatch.setattr(mask_pasting, "_PIXELS", pixels)
        found = pasted(masks, boxes, 70, 83)
        assert np.array_equal(np.stack([decoded(counts, 70, 83) for counts in found]), wanted)
    assert pasted(masks[:0], boxes[:0], 70, 83) == () and wanted.any()


def test_published_settings_have_the_parameters_of_torchvision():
    # torchvision gives 44,401,393 with 91 columns; it has a box and a mask for no-object, and freezes BatchNorm
    assert parameter_count("mask_rcnn", 90) == 44_401_393 + 53_120 - 4 * 1025 - 257


# the contract


def test_the_output_is_that_of_faster_rcnn_with_the_same_weights():
    detector = shared()
    plain = tiny("faster_rcnn")
    assert isinstance(plain, FasterRcnn)
    plain.load_state_dict({name: value for name, value in detector.state_dict().items() if name in plain.state_dict()})
    one, two = (own(*images_of(*PADDED)) for own in (detector, plain.eval()))
    assert torch.equal(one.logits, two.logits) and torch.equal(one.boxes, two.boxes) and type(one) is type(two)
    assert detector.provides == plain.provides | {"masks"}


def test_every_loss_has_a_weight_and_every_parameter_is_trained_with_and_without_targets():
    for counts in ((2, 1), (0, 0)):
        detector, targets = fresh(True), some_targets(*counts, sizes=PADDED[:2])
        losses = detector.losses(detector(*images_of(*PADDED[:2]), targets), targets, 3.0)
        assert set(losses) == set(detector.loss_weights) == {"class", "bbox", "objectness", "rpn_bbox", "mask"}
        torch.stack(list(losses.values())).sum().backward()
        assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


def test_a_target_without_a_mask_and_a_batch_without_masks_teach_no_mask():
    detector = fresh()
    with torch.no_grad():
        output = detector(*images_of(SIZE, SIZE))
    targets = some_targets(2, 2)
    match = torch.full(output.logits.shape[:3], -1)
    match[0, 0, :2], match[0, 1, 0] = torch.tensor([0, 1]), 1
    assert targets.masks is not None

    def loss(masks: tuple[Tensor, ...] | None) -> float:
        return float(detector.losses(output, replace(targets, masks=masks), 1.0, match)["mask"].detach())

    whole = loss(targets.masks)
    blank = targets.masks[0].clone()
    blank[1] = False
    others = match.clone()
    others[0, 0, 1] = -1
    without = detector.losses(output, targets, 1.0, others)["mask"]
    assert loss((blank, targets.masks[1])) == pytest.approx(float(without.detach())) != pytest.approx(whole)
    assert loss(None) == loss(tuple(torch.zeros_like(masks) for masks in targets.masks)) == 0


def test_the_mask_of_a_detection_lies_at_its_box_in_an_image_of_another_size():
    detector = shared()
    images, padding = images_of(SIZE)
    with torch.no_grad():
        output = detector(images, padding)
    small, large = (detector.detections(output, torch.tensor([size]), k=20)[0] for size in (SIZE, (192, 192)))
    assert small.masks is not None and large.masks is not None and torch.equal(small.scores, large.scores)
    levels, label = two_stage_output(output).context.levels, large.labels
    with torch.no_grad():
        shares = detector.mask_logits(levels, [small.boxes]).sigmoid()[torch.arange(len(label)), label]
    wanted = paste_masks_in_image(shares[:, None], large.boxes, (192, 192))[:, 0]
    certain = ((wanted - 0.5).abs() > 1e-3).numpy()
    found = np.stack([decoded(mask, 192, 192) for mask in large.masks])
    assert (found == (wanted > 0.5).numpy())[certain].all() and certain.mean() > 0.98 and found.any()


def test_an_answer_from_a_cache_has_detections_without_masks():
    detector = shared()
    with torch.no_grad():
        output = two_stage_output(detector(*images_of(SIZE)))
    (found,) = detector.detections(replace(output, context=None), torch.tensor([SIZE]))
    assert found.masks is None and len(found.scores)


def test_a_saved_detector_loads_with_equal_masks(tmp_path: Path):
    shared().save(tmp_path)
    loaded = load_detector(tmp_path).eval()
    assert isinstance(loaded, MaskRcnn) and loaded.spec == SPEC and loaded.config == shared().config
    with torch.no_grad():
        one, two = (own.detections(own(*images_of(SIZE)), torch.tensor([SIZE]))[0] for own in (shared(), loaded))
    assert one.masks == two.masks and one.masks


def test_a_reset_head_knows_the_new_classes():
    detector = fresh()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    made = detector.reset_classes(InputSpec(("cat", "dog", "bird", "cow", "sheep"), SPEC.mean, SPEC.std))
    output = two_stage_output(detector(*images_of(SIZE)))
    assert detector.mask_logits(output.context.levels, [output.context.rois[0, :2]]).shape == (2, 5, 8, 8)
    after = detector.state_dict()
    changed = {name for name, value in after.items() if value.shape != before[name].shape or not torch.equal(value, before[name])}
    assert changed == set(made) and any(name.startswith("mask_predictor.mask_fcn_logits") for name in made)
