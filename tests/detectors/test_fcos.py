"""FCOS assigns, learns and detects as torchvision's."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS

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
)  # fmt: skip
from tests.examples import SPEC
from workbench.detectors.detector import Detections
from workbench.detectors.fcos import centreness_of, distances_to
from workbench.detectors.output import DenseOutput, HeadMap

CLASSES = len(SPEC.classes)
SIZE: Sides = (128, 192)
# images of a batch: without targets, of few, and of more targets than the 504 points
COUNTS = [(0, 0), (3, 0), (5, 7), (600, 2), (1, 1)]


def positive(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Distances in strides, some of them 0."""
    return (4 * torch.rand(shape, generator=generator) - 0.5).clamp(min=0)


def theirs(**settings: Any) -> Any:
    generator = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return FCOS(Features(), CLASSES, anchor_generator=generator, **settings)


def squares(maps: Sequence[HeadMap]) -> list[Tensor]:
    """Of each level the squares of one stride around the centres of the cells, row by row."""
    levels: list[Tensor] = []
    for level in maps:
        height, width = level.logits.shape[-2:]
        s = level.stride
        levels.append(torch.tensor([[x * s, y * s, (x + 1) * s, (y + 1) * s] for y in range(height) for x in range(width)]).double())
    return levels


def said(maps: Sequence[HeadMap]) -> Outputs:
    quality = [level.quality for level in maps if level.quality is not None]
    return {
        "cls_logits": [rows(level.logits, CLASSES) for level in maps],
        "bbox_regression": [rows(level.boxes, 4) for level in maps],
        "bbox_ctrness": [rows(level, 1) for level in quality],
    }


def their_losses(model: Any, maps: Sequence[HeadMap], targets: list[dict[str, Tensor]], points: Tensor | None = None) -> dict[str, Tensor]:
    """torchvision's losses of a batch, or of those ``points`` of one image that are True."""
    anchors = squares(maps)
    kept = torch.ones(len(torch.cat(anchors)), dtype=torch.bool) if points is None else points
    counts = [int(part.sum()) for part in kept.split([len(level) for level in anchors])]
    outputs = {name: torch.cat(levels, 1)[:, kept].double() for name, levels in said(maps).items()}
    found = model.compute_loss(targets, outputs, [torch.cat(anchors)[kept]] * len(targets), counts)
    return {"class": found["classification"], "giou": found["bbox_regression"], "centreness": found["bbox_ctrness"]}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("radius", [1.5, 0.7])
def test_assignment_losses_and_gradients_are_torchvisions(counts: tuple[int, int], seed: int, radius: float):
    detector = dense("fcos", radius=radius)
    forward, maps = saying(detector, positive, seed)
    output = forward(SIZE, SIZE)
    targets = targets_of_every_size(counts, seed, labels=(0, 2))
    model = theirs(center_sampling_radius=radius)
    assigned = spied(model)
    wanted = their_losses(model, maps, in_pixels(targets, [SIZE, SIZE]))
    assert torch.equal(detector.assign(output, targets)[0], torch.stack(assigned))
    losses = detector.losses(output, targets, 1.0)
    assert losses.keys() == wanted.keys() == detector.loss_weights.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value.double(), wanted[name], atol=1e-5, rtol=1e-5)
        for ours, own in zip(gradients(value, maps), gradients(wanted[name], maps), strict=True):
            torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-4)


def test_the_random_cases_hold_targets_of_every_level_and_some_without_a_point():
    detector = dense("fcos")
    output = saying(detector, positive, 0)[0](SIZE, SIZE)
    targets = targets_of_every_size((600, 7), 1)
    many, few = detector.assign(output, targets)[0]
    assert targets.valid.sum(1).tolist() == [600, 7] and output.logits.shape[2] == 504
    assert (many == -1).any() and len(many[many >= 0].unique()) < 300
    assert {int(level) for level in output.grid.level[few >= 0]} == {0, 1, 2}
    small = (targets.boxes[0, :, 2] * 192 < 8) & (targets.boxes[0, :, 3] * 128 < 8)
    found = torch.zeros(600, dtype=torch.bool).scatter(0, many[many >= 0], True)
    assert (small & found).any() and (small & ~found).any(), "of the boxes smaller than a cell a point lies in some alone"


@pytest.mark.parametrize("seed", range(3))
def test_an_image_in_a_padded_batch_learns_what_torchvision_learns_of_its_own_points(seed: int):
    sizes = [(128, 192), (80, 144), (66, 100)]  # strides 16 and 32 do not divide the last two
    detector = dense("fcos")
    forward, maps = saying(detector, positive, seed)
    output = forward(*sizes)
    targets = targets_of_every_size((4, 6, 3), seed)
    model = theirs()
    assigned = spied(model)
    match, pixels = detector.assign(output, targets)[0], in_pixels(targets, sizes)
    total, positives = dict.fromkeys(detector.loss_weights, torch.zeros((), dtype=torch.float64)), 0
    for index, (height, width) in enumerate(sizes):
        centres = torch.cat([(level[:, :2] + level[:, 2:]) / 2 for level in squares(maps)])
        own = (centres[:, 0] < width) & (centres[:, 1] < height)
        image = [
            HeadMap(m.stride, m.logits[index, None], m.boxes[index, None], m.quality[index, None]) for m in maps if m.quality is not None
        ]
        part = their_losses(model, image, [pixels[index]], own)
        assert torch.equal(match[index, own], assigned[0]) and (match[index, ~own] == -2).all()
        count = int((assigned[0] >= 0).sum())
        positives += count
        total = {name: value + part[name] * max(1, count) for name, value in total.items()}
    for name, value in detector.losses(output, targets, 1.0).items():
        torch.testing.assert_close(value.double(), total[name] / positives, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("threshold", "overlap", "candidates", "k"), [(0.05, 0.6, 1000, 300), (0.3, 0.3, 40, 15), (0.999, 0.5, 10, 5)])
def test_detections_are_torchvisions_box_for_box(threshold: float, overlap: float, candidates: int, k: int, seed: int):
    sizes = [(128, 192), (80, 144)]
    detector = dense("fcos", score_threshold=threshold, nms_threshold=overlap, candidates=candidates)
    forward, maps = saying(detector, positive, seed)
    model = theirs(score_thresh=threshold, nms_thresh=overlap, topk_candidates=candidates, detections_per_img=k)
    with torch.no_grad():
        output = forward(*sizes)
        assert output.valid is not None
        # the second image was twice as wide and three times as high before it was resized, which changes no overlap
        found = detector.detections(output, torch.tensor([[128, 192], [240, 288]]), k)
        wanted = their_detections(model, said(maps), squares(maps), sizes, output.valid)
    for image, scale in enumerate(([1.0] * 4, [2.0, 3.0, 2.0, 3.0])):
        assert_equal_detections(found[image], wanted[image], scale)
        assert_candidates(output, image, found[image])
    assert (threshold == 0.999) == (not len(found[0].scores))


def assert_candidates(output: DenseOutput, image: int, found: Detections) -> None:
    """The candidate of a detection is the one whose score it has."""
    assert output.quality is not None
    score = (output.logits[0, image].sigmoid() * output.quality[0, image].sigmoid()[:, None]).sqrt()
    torch.testing.assert_close(score[found.queries, found.labels], found.scores, atol=1e-6, rtol=0)


def test_centreness_is_one_in_the_centre_and_falls_with_both_sides():
    box = torch.tensor([[0.0, 0.0, 8.0, 4.0]])
    points = torch.tensor([[4.0, 2.0], [2.0, 2.0], [2.0, 1.0]])
    # left 2 and right 6 give 1/3, top 1 and bottom 3 give 1/3
    torch.testing.assert_close(centreness_of(distances_to(points, box)), torch.tensor([1.0, (1 / 3) ** 0.5, 1 / 3]))
