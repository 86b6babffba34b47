"""The two assignments of RepPoints equal cases worked out by hand and loops over points and targets."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from workbench.detectors.grid import point_grid
from workbench.detectors.output import Grid
from workbench.detectors.reppoints_assignment import overlap_assignment, place_assignment

# points 0 to 11 lie 8 pixels apart in three rows of four, 12 and 13 at (0, 0) and (16, 0)
POINTS = point_grid((8, 16), [(3, 4), (1, 2)], torch.device("cpu"), place=0.0)


def placed(*boxes: list[float], missing: tuple[int, ...] = (), usable: bool = True) -> list[int]:
    exists, valid = torch.ones(1, len(POINTS.cell), dtype=torch.bool), torch.full((1, len(boxes)), usable)
    exists[0, list(missing)] = False
    return place_assignment(POINTS, exists, torch.tensor([boxes]).view(1, -1, 4), valid)[0].tolist()


def overlapped(candidates: list[list[float]], *boxes: list[float], missing: tuple[int, ...] = (), usable: bool = True) -> list[int]:
    exists, valid = torch.ones(1, len(candidates), dtype=torch.bool), torch.full((1, len(boxes)), usable)
    exists[0, list(missing)] = False
    return overlap_assignment(torch.tensor([candidates]), exists, torch.tensor([boxes]).view(1, -1, 4), valid)[0].tolist()


def only(where: dict[int, int], count: int = 14) -> list[int]:
    return [where.get(n, -1) for n in range(count)]


def test_a_target_has_the_point_nearest_to_its_centre_on_the_level_of_its_size():
    assert placed([2.0, 3.0, 20.0, 17.0]) == only({5: 0}), "the centre (11, 10) is nearest to (8, 8)"
    assert placed([0.0, 0.0, 63.0, 63.0]) == only({11: 0}), "sides of 63 are less than 4 strides of 16"
    assert placed([0.0, 0.0, 64.0, 64.0]) == only({13: 0})
    assert placed([2.0, 0.0, 18.0, 256.0]) == only({13: 0}), "the mean of both sides' logarithms counts"
    assert placed([7.0, 7.0, 8.5, 8.5]) == only({5: 0}), "a tiny target lies on the finest level"
    assert placed([0.0, 0.0, 900.0, 900.0]) == only({13: 0}), "a huge one on the coarsest"


def test_distance_is_measured_in_sides_of_the_target():
    # both want (8, 8): the first is 2 pixels of its width of 20 away, the second 1 pixel of its height of 8
    assert placed([0.0, 4.0, 20.0, 12.0], [-2.0, 5.0, 18.0, 13.0]) == only({5: 0})
    assert placed([-2.0, 5.0, 18.0, 13.0], [0.0, 4.0, 20.0, 12.0]) == only({5: 1})


def test_a_point_that_two_targets_want_goes_to_the_nearer_centre_and_to_the_first_of_equals():
    near, far = [0.0, 0.0, 16.0, 16.0], [1.0, 1.0, 17.0, 17.0]
    assert placed(far, near) == only({5: 1}) and placed(near, far) == only({5: 0})
    assert placed(near, near) == only({5: 0})


def test_a_point_in_the_padding_is_nobodys():
    assert placed([2.0, 3.0, 20.0, 17.0], missing=(5,)) == only({6: 0})
    assert placed([0.0, 0.0, 64.0, 64.0], missing=(12, 13)) == only({})


def test_without_targets_all_is_background():
    assert placed() == only({})
    assert overlapped(WIDTHS) == [-1] * 5
    assert placed([0.0, 0.0, 16.0, 16.0], usable=False) == only({})
    assert overlapped(WIDTHS, WANTED, usable=False) == [-1] * 5


# IoU with [0, 0, 10, 10]: 0.9, 0.5, 0.45, 0.39, 0
WIDTHS = [[0.0, 0.0, width, 10.0] for width in (9.0, 5.0, 4.5, 3.9)] + [[20.0, 20.0, 30.0, 30.0]]
WANTED = [0.0, 0.0, 10.0, 10.0]


def test_overlap_decides_by_hand():
    assert overlapped(WIDTHS, WANTED) == [0, 0, -2, -1, -1]


def test_the_best_candidates_of_a_target_learn_it_whatever_the_overlap():
    assert overlapped(WIDTHS[3:], WANTED) == [0, -1]
    assert overlapped([WIDTHS[2], WIDTHS[3], WIDTHS[2]], WANTED) == [0, -1, 0], "all with the highest IoU"
    assert overlapped(WIDTHS[2:], WANTED, missing=(0,)) == [-1, 0, -1]


def test_a_target_that_no_candidate_overlaps_has_no_positive():
    assert overlapped(WIDTHS[:4], [20.0, 20.0, 30.0, 30.0]) == [-1] * 4


def test_of_two_targets_with_the_same_best_candidate_the_later_has_it():
    other = [0.0, 0.0, 9.0, 8.0]
    assert overlapped(WIDTHS[:1], WANTED, other) == [1], "although the first overlaps it more"
    assert overlapped(WIDTHS[:1], other, WANTED) == [1]


def placed_by_loops(grid: Grid, exists: Tensor, boxes: list[list[float]]) -> list[int]:
    owner, distance = [-1] * len(grid.cell), [math.inf] * len(grid.cell)
    for target, (left, top, right, bottom) in enumerate(boxes):
        width, height = right - left, bottom - top
        level = int((math.log2(width / 4) + math.log2(height / 4)) / 2)
        level = min(max(level, 3), 5)
        there = [n for n in range(len(grid.cell)) if int(math.log2(int(grid.stride[n]))) == level and exists[n]]

        def away(n: int, x: float = (left + right) / 2, y: float = (top + bottom) / 2, w: float = width, h: float = height) -> float:
            return math.hypot((float(grid.centres[n, 0]) - x) / w, (float(grid.centres[n, 1]) - y) / h)

        best = min(there, key=away)
        if away(best) < distance[best]:
            owner[best], distance[best] = target, away(best)
    return owner


def overlapped_by_loops(candidates: Tensor, exists: Tensor, boxes: Tensor) -> list[int]:
    iou = box_iou(boxes, candidates).tolist()
    found = [-1] * len(candidates)
    for n in range(len(candidates)):
        if exists[n]:
            best = max(iou[g][n] for g in range(len(boxes)))
            found[n] = -1 if best < 0.4 else -2 if best < 0.5 else next(g for g in range(len(boxes)) if iou[g][n] == best)
    for g in range(len(boxes)):
        most = max(iou[g][n] for n in range(len(candidates)) if exists[n])
        for n in range(len(candidates)):
            if exists[n] and iou[g][n] == most > 0:
                found[n] = g
    return found


@pytest.mark.parametrize("seed", range(3))
def test_random_targets_are_assigned_as_loops_do(seed: int):
    grid = point_grid((8, 16, 32), [(12, 12), (6, 6), (3, 3)], torch.device("cpu"), place=0.0)
    generator = torch.Generator().manual_seed(seed)
    low = 80 * torch.rand(2, 12, 2, generator=generator)
    boxes = torch.cat([low, low + 8 + 80 * torch.rand(2, 12, 2, generator=generator) ** 2], -1)
    exists = (grid.centres < torch.tensor([[96.0, 96.0], [60.0, 96.0]])[:, None]).all(-1)
    valid = torch.ones(2, 12, dtype=torch.bool)
    near = boxes.repeat(1, 16, 1)[:, : len(grid.cell)]
    candidates = near + 0.3 * (near[..., 2:] - near[..., :2]).repeat(1, 1, 2) * torch.rand(near.shape, generator=generator)
    first, second = place_assignment(grid, exists, boxes, valid), overlap_assignment(candidates, exists, boxes, valid)
    for image in range(2):
        assert first[image].tolist() == placed_by_loops(grid, exists[image], boxes[image].tolist())
        assert second[image].tolist() == overlapped_by_loops(candidates[image], exists[image], boxes[image])
    assert int((first >= 0).sum()) > 8 and int((second == -2).sum()) > 20
