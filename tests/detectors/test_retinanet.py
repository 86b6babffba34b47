"""RetinaNet assigns, learns and detects as torchvision's."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNet as Theirs
from torchvision.models.detection.retinanet import _default_anchorgen  # pyright: ignore[reportPrivateUsage]
from torchvision.ops import box_iou

from tests.detectors.dense_examples import (
    Features,
    Outputs,
    Sides,
    assert_equal_detections,
    dense,
    gradients,
    in_pixels,
    rows,
    saying,
    spied,
    targets_of_every_size,
    their_detections,
)
from tests.examples import SPEC
from workbench.datasets.targets import TargetBatch, Targets
from workbench.detectors.output import HeadMap
from workbench.detectors.retinanet import RetinaNet, RetinaNetModelConfig

CLASSES = len(SPEC.classes)
SIZE: Sides = (128, 192)
ONE_SHAPE = {"octave_scales": 1, "anchor_ratios": [1.0]}
# images of a batch: without targets, of few, and of more targets than the 504 anchors of one shape
CASES: list[tuple[tuple[int, int], dict[str, Any]]] = [((0, 0), {}), ((3, 0), {}), ((5, 40), {}), ((1, 1), {}), ((600, 2), ONE_SHAPE)]


def deltas(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 0.5 * torch.randn(shape, generator=generator)


def theirs(detector: Any, **settings: Any) -> Any:
    return Theirs(Features(), CLASSES, anchor_generator=detector.config.generator(), **settings)


def anchors_of(detector: Any, maps: Sequence[HeadMap]) -> list[Tensor]:
    """The anchors of each level: the shapes of a cell are centred at its first pixel, cells go row by row."""
    levels: list[Tensor] = []
    for level, shapes in zip(maps, detector.config.generator().cell_anchors, strict=True):
        (height, width), s = level.logits.shape[-2:], level.stride
        levels.append(torch.cat([shapes + torch.tensor([x, y, x, y]) * s for y in range(height) for x in range(width)]).double())
    return levels


def said(maps: Sequence[HeadMap]) -> Outputs:
    return {"cls_logits": [rows(level.logits, CLASSES) for level in maps], "bbox_regression": [rows(level.boxes, 4) for level in maps]}


def their_losses(
    model: Any, maps: Sequence[HeadMap], targets: list[dict[str, Tensor]], anchors: Tensor, kept: Tensor | None = None
) -> dict[str, Tensor]:
    """torchvision's losses of a batch, or of those ``anchors`` of one image that are ``kept``."""
    kept = torch.ones(len(anchors), dtype=torch.bool) if kept is None else kept
    outputs = {name: torch.cat(levels, 1)[:, kept].double() for name, levels in said(maps).items()}
    found = model.compute_loss(targets, outputs, [anchors[kept]] * len(targets))
    return {"class": found["classification"], "bbox": found["bbox_regression"]}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("counts", "anchors"), CASES, ids=str)
def test_assignment_losses_and_gradients_are_torchvisions(counts: tuple[int, int], anchors: dict[str, Any], seed: int):
    detector = dense("retinanet", **anchors)
    forward, maps = saying(detector, deltas, seed)
    output = forward(SIZE, SIZE)
    targets = targets_of_every_size(counts, seed, labels=(0, 2))
    model = theirs(detector)
    assigned = spied(model)
    wanted = their_losses(model, maps, in_pixels(targets, [SIZE, SIZE]), torch.cat(anchors_of(detector, maps)))
    match = detector.assign(output, targets)[0]
    assert torch.equal(match, torch.stack(assigned))
    assert (match >= 0).any() == (sum(counts) > 0) and ((match == -2).any() or sum(counts) < 40)
    losses = detector.losses(output, targets, 1.0)
    assert losses.keys() == wanted.keys() == detector.loss_weights.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value.double(), wanted[name], atol=1e-5, rtol=1e-5)
        for ours, own in zip(gradients(value, maps), gradients(wanted[name], maps), strict=True):
            torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_an_image_in_a_padded_batch_learns_what_torchvision_learns_of_its_own_anchors(seed: int):
    sizes = [(128, 192), (80, 144), (66, 100)]  # strides 16 and 32 do not divide the last two
    detector = dense("retinanet")
    forward, maps = saying(detector, deltas, seed)
    output = forward(*sizes)
    targets = targets_of_every_size((4, 6, 3), seed)
    model = theirs(detector)
    assigned, anchors = spied(model), torch.cat(anchors_of(detector, maps))
    match, pixels, parts = detector.assign(output, targets)[0], in_pixels(targets, sizes), list[dict[str, Tensor]]()
    for index, (height, width) in enumerate(sizes):
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        own = (centres[:, 0] < width) & (centres[:, 1] < height)
        image = [HeadMap(level.stride, level.logits[index, None], level.boxes[index, None]) for level in maps]
        parts.append(their_losses(model, image, [pixels[index]], anchors, own))
        assert torch.equal(match[index, own], assigned[0]) and (match[index, ~own] == -2).all()
    for name, value in detector.losses(output, targets, 1.0).items():
        torch.testing.assert_close(value.double(), torch.stack([part[name] for part in parts]).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("threshold", "overlap", "candidates", "k"), [(0.05, 0.5, 1000, 300), (0.3, 0.3, 40, 15), (0.9999, 0.5, 10, 5)])
def test_detections_are_torchvisions_box_for_box(threshold: float, overlap: float, candidates: int, k: int, seed: int):
    sizes = [(128, 192), (80, 144)]
    detector = dense("retinanet", score_threshold=threshold, nms_threshold=overlap, candidates=candidates)
    forward, maps = saying(detector, deltas, seed)
    model = theirs(detector, score_thresh=threshold, nms_thresh=overlap, topk_candidates=candidates, detections_per_img=k)
    with torch.no_grad():
        output = forward(*sizes)
        assert output.valid is not None
        # the second image was twice as wide and three times as high before it was resized, which changes no overlap
        found = detector.detections(output, torch.tensor([[128, 192], [240, 288]]), k)
        wanted = their_detections(model, said(maps), anchors_of(detector, maps), sizes, output.valid)
    for image, scale in enumerate(([1.0] * 4, [2.0, 3.0, 2.0, 3.0])):
        ours = found[image]
        assert_equal_detections(ours, wanted[image], scale)
        torch.testing.assert_close(output.logits[0, image].sigmoid()[ours.queries, ours.labels], ours.scores, atol=1e-6, rtol=0)
    assert (threshold == 0.9999) == (not len(found[0].scores))


def test_the_published_anchors_are_torchvisions():
    config = RetinaNetModelConfig.model_validate({"backbone": {"name": "resnet50"}})
    assert config.strides == (8, 16, 32, 64, 128)
    for ours, own in zip(config.generator().cell_anchors, _default_anchorgen().cell_anchors, strict=True):
        assert torch.equal(ours, own)


def test_anchors_are_declared_by_level():
    detector = dense("retinanet", anchor_sizes=[12, 20, 48], octave_scales=1, anchor_ratios=[1.0, 4.0])
    assert isinstance(detector, RetinaNet)
    grid = detector.grid([(4, 6), (2, 3), (1, 2)], torch.device("cpu"))
    assert grid.shapes == 2 and len(grid.anchors) == 2 * (24 + 6 + 2)
    sides = grid.anchors[:, 2:] - grid.anchors[:, :2]
    assert sides[0].tolist() == [12, 12] and sides[1].tolist() == [6, 24]  # a ratio is height over width
    assert sides[2 * 24].tolist() == [20, 20] and sides[-1].tolist() == [24, 96]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor_sizes": [16, 32]}, r"anchor_sizes has 2 numbers, but there are levels of strides \[8, 16, 32\]"),
        ({"anchor_sizes": [1, 8, 16], "octave_scales": 1, "anchor_ratios": [0.25]}, "an anchor without area"),
        ({"anchor_ratios": []}, "anchor_ratios"),
        ({"anchor_ratios": [0.0]}, "anchor_ratios"),
    ],
)
def test_anchors_that_cannot_be_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        dense("retinanet", **changes)


def pixels(*boxes: Sequence[float]) -> TargetBatch:
    """Targets of one image of SIZE, xyxy in pixels."""
    corners = torch.tensor(boxes) / torch.tensor([192.0, 128.0, 192.0, 128.0])
    centred = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], -1)
    return TargetBatch.of([Targets(centred, torch.zeros(len(boxes), dtype=torch.int64), torch.ones(len(boxes), dtype=torch.bool))])


def test_a_target_is_covered_if_an_anchor_of_its_image_overlaps_it_by_half():
    detector = dense("retinanet")
    sizes = [(128, 192), (66, 100)]
    output = saying(detector, deltas, 0)[0](*sizes)
    targets = targets_of_every_size((40, 40), 3)
    covered = detector.covered(output.sides, targets)
    assert output.valid is not None
    for image, boxes in enumerate(in_pixels(targets, sizes)):
        overlap = box_iou(boxes["boxes"], output.grid.anchors[output.valid[image]].double())
        assert torch.equal(covered[image], (overlap >= 0.5).any(1)) and 0 < covered[image].sum() < 40


def test_a_target_that_no_anchor_overlaps_makes_no_anchor_positive():
    # anchors of 4 pixels at stride 8 leave gaps; torchvision takes every anchor for the best of a target in one
    detector = dense("retinanet", anchor_sizes=[4, 4, 4], octave_scales=1, anchor_ratios=[1.0])
    output = saying(detector, deltas, 0)[0](SIZE)
    match = detector.assign(output, pixels((43, 43, 45, 45), (38, 38, 43, 43)))[0, 0]
    assert (match != 0).all() and (match == 1).sum() == 1, "the anchor at (40, 40), of stride 8"
    alone = pixels((43, 43, 45, 45))
    assert (detector.assign(output, alone) == -1).all()
    losses = detector.losses(output, alone, 1.0)
    assert losses["bbox"] == 0 and torch.isfinite(losses["class"])


def test_anchors_of_the_padding_do_not_take_a_target_from_those_of_the_image():
    detector = dense("retinanet", anchor_sizes=[12, 300, 300], **ONE_SHAPE)
    output = saying(detector, deltas, 0)[0]((128, 176), canvas=SIZE)
    # x from 170 to the image's border at 176: the anchor at 176 covers all of it, the one at 168 two thirds of it
    targets = TargetBatch.of([Targets(torch.tensor([[173 / 176, 88 / 128, 6 / 176, 12 / 128]]), torch.tensor([0]), torch.tensor([True]))])
    match = detector.assign(output, targets)[0, 0]
    assert output.grid.centres[match == 0].tolist() == [[168, 88]]
    (in_padding,) = (output.grid.centres == torch.tensor([176.0, 88.0])).all(-1).nonzero()[:, 0]
    assert match[in_padding] == -2
