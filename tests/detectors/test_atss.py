"""ATSS equals a case worked out by hand and loops over anchors and targets."""

import math

import pytest
import torch
from torch import Tensor

from workbench.detectors.atss import atss_assignment, nearest_anchors
from workbench.detectors.grid import point_grid
from workbench.detectors.output import Grid


def anchors_of(strides: tuple[int, ...], sizes: list[tuple[int, int]], scale: float) -> Grid:
    """Square anchors of ``scale`` strides around the first pixel of every cell."""
    grid = point_grid(strides, sizes, torch.device("cpu"), place=0.0)
    half = grid.stride[:, None] * scale / 2
    return Grid(grid.level, grid.cell, torch.cat([grid.centres - half, grid.centres + half], -1), grid.strides, grid.sizes)


# anchors 0 to 3 have side 8 and centres (0, 0), (4, 0), (8, 0), (12, 0); 4 and 5 have side 16 and centres (0, 0), (8, 0)
SMALL_GRID = anchors_of((4, 8), [(1, 4), (1, 2)], 2.0)
ALL = torch.ones(1, 6, dtype=torch.bool)
TARGET = [1.0, -4.0, 9.0, 4.0]


def assigned(*boxes: list[float], grid: Grid = SMALL_GRID, exists: Tensor = ALL, nearest: int = 2) -> list[int]:
    valid = torch.ones(1, len(boxes), dtype=torch.bool)
    return atss_assignment(grid, exists, torch.tensor([boxes]).view(1, -1, 4), valid, nearest)[0].tolist()


def test_a_case_worked_out_by_hand():
    near = nearest_anchors(SMALL_GRID, ALL, torch.tensor([[TARGET]]), 2)
    # distances from (5, 0) are 5, 1, 3, 7 on the first level and 5, 3 on the second
    assert near.index.tolist() == [[[1, 2, 5, 4]]]
    assert near.iou[0, 0].tolist() == pytest.approx([56 / 72, 40 / 88, 64 / 256, 56 / 264])
    mean = (56 / 72 + 40 / 88 + 64 / 256 + 56 / 264) / 4
    spread = math.sqrt(sum((value - mean) ** 2 for value in (56 / 72, 40 / 88, 64 / 256, 56 / 264)) / 3)
    assert float(near.threshold) == pytest.approx(mean + spread) == pytest.approx(0.6826, abs=1e-4)
    assert assigned(TARGET) == [-1, 0, -1, -1, -1, -1]


def test_an_anchor_that_two_targets_claim_learns_the_one_with_the_higher_iou():
    assert assigned(TARGET, [0.5, -4.0, 8.5, 4.0])[1] == 1
    assert assigned([0.5, -4.0, 8.5, 4.0], TARGET)[1] == 0


def test_a_target_in_which_no_centre_lies_has_no_positive():
    assert assigned([1.0, 1.0, 3.0, 3.0]) == [-1] * 6
    # a centre must lie a hundredth of a pixel inside
    assert assigned([1.0, -0.02, 9.0, 7.98]) == [-1, 0, -1, -1, -1, -1]
    assert assigned([1.0, -0.005, 9.0, 7.995]) == [-1] * 6


def test_an_anchor_in_the_padding_neither_learns_nor_moves_a_threshold():
    exists = torch.tensor([[True, True, True, False, True, False]])
    boxes = torch.tensor([[[7.0, -4.0, 15.0, 4.0]]])
    near = nearest_anchors(SMALL_GRID, exists, boxes, 2)
    smaller = nearest_anchors(anchors_of((4, 8), [(1, 3), (1, 1)], 2.0), torch.ones(1, 4, dtype=torch.bool), boxes, 2)
    torch.testing.assert_close(near.threshold, smaller.threshold)
    match = assigned([7.0, -4.0, 15.0, 4.0], exists=exists)
    assert match[3] == match[5] == -1 and 0 in match


def test_anchors_that_overlap_a_target_equally_are_all_positive():
    grid = anchors_of((8,), [(3, 3)], 0.7)
    exists = torch.ones(1, 9, dtype=torch.bool)
    assert assigned([-40.1, -40.1, 60.3, 60.3], grid=grid, exists=exists, nearest=9) == [0] * 9


@pytest.mark.parametrize("nearest", [9, 100])
def test_without_targets_or_with_none_that_may_be_assigned_all_is_background(nearest: int):
    assert assigned(nearest=nearest) == [-1] * 6
    boxes = torch.tensor([[TARGET, TARGET]])
    match = atss_assignment(SMALL_GRID, ALL, boxes, torch.tensor([[False, True]]), nearest)
    assert set(match.flatten().tolist()) == {-1, 1}
    assert (atss_assignment(SMALL_GRID, ALL, boxes, torch.zeros(1, 2, dtype=torch.bool), nearest) == -1).all()


def iou_of(a: list[float], b: list[float]) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(across, 0) * max(down, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def by_loops(grid: Grid, exists: list[bool], boxes: list[list[float]], valid: list[bool]) -> list[int]:
    anchors = [anchor.tolist() for anchor in grid.anchors]
    best = [(0.0, -1)] * len(anchors)
    for target, box in enumerate(boxes):
        if not valid[target]:
            continue
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        chosen: list[int] = []
        for level in range(len(grid.strides)):
            there = [n for n in range(len(anchors)) if int(grid.level[n]) == level and exists[n]]
            chosen += sorted(there, key=lambda n: math.dist(grid.centres[n].tolist(), centre))[:9]
        overlaps = [iou_of(anchors[n], box) for n in chosen]
        mean = sum(overlaps) / len(overlaps)
        threshold = mean + math.sqrt(sum((value - mean) ** 2 for value in overlaps) / (len(overlaps) - 1))
        for n, overlap in zip(chosen, overlaps, strict=True):
            x, y = grid.centres[n].tolist()
            if overlap >= threshold and min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01 and overlap > best[n][0]:
                best[n] = (overlap, target)
    return [target for _, target in best]


@pytest.mark.parametrize("scale", [2.0, 8.0])
def test_random_targets_are_assigned_as_loops_do(scale: float):
    grid = anchors_of((8, 16, 32), [(12, 12), (6, 6), (3, 3)], scale)
    generator = torch.Generator().manual_seed(0)
    low = 80 * torch.rand(3, 6, 2, generator=generator)
    boxes = torch.cat([low, low + 4 + 60 * torch.rand(3, 6, 2, generator=generator)], -1)
    valid = torch.rand(3, 6, generator=generator) < 0.8
    exists = (grid.centres < torch.tensor([[96.0, 96.0], [60.0, 96.0], [96.0, 40.0]])[:, None]).all(-1)
    match = atss_assignment(grid, exists, boxes, valid)
    for image in range(3):
        assert match[image].tolist() == by_loops(grid, exists[image].tolist(), boxes[image].tolist(), valid[image].tolist())
    assert int((match >= 0).sum()) > 20
