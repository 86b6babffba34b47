"""Noised targets hold every target as often as they say, noised as much as they say, and groups do not see each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import batch_of
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch
from workbench.detectors.denoising import group_count, noised_targets, visible


@pytest.mark.parametrize(("number", "most", "groups"), [(100, 3, 33), (100, 7, 14), (100, 100, 1), (100, 200, 1), (100, 0, 1), (1, 1, 1)])
def test_there_are_as_many_groups_as_fit_and_at_least_one(number: int, most: int, groups: int):
    assert group_count(number, most) == groups


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), number=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_group_restores_every_target_once_and_its_negatives_restore_nothing(counts: list[int], number: int, seed: int):
    targets = batch_of(counts, 4, torch.Generator().manual_seed(seed))
    noised = noised_targets(targets, 4, number, 0.5, 1.0)
    most = max(counts)
    assert noised.groups == group_count(number, most)
    assert noised.labels.shape == noised.match.shape == noised.real.shape == (len(counts), noised.groups * 2 * most)
    for image, count in enumerate(counts):
        for group in range(noised.groups):
            start = group * 2 * most
            slots = noised.match[image, start : start + 2 * most].tolist()
            assert slots == [*range(count), *[-1] * (most - count), *[-1] * most]
            real = noised.real[image, start : start + 2 * most].tolist()
            assert real == 2 * [slot < count for slot in range(most)]


def test_targets_that_may_not_be_matched_are_left_out_and_the_others_keep_their_index():
    targets = batch_of([4, 2], 4, torch.Generator().manual_seed(0))
    valid = targets.valid.clone()
    valid[0, 0] = valid[0, 2] = False
    targets = TargetBatch(targets.boxes, targets.labels, valid)
    noised = noised_targets(targets, 4, 4, 0.0, 0.0)
    assert noised.groups == 2
    assert noised.match.tolist() == [[1, 3, -1, -1] * 2, [0, 1, -1, -1] * 2]
    assert noised.labels[0].tolist() == targets.labels[0, [1, 3]].tolist() * 4
    torch.testing.assert_close(noised.boxes[0], targets.boxes[0, [1, 3]].repeat(4, 1))


def small_boxes(count: int) -> TargetBatch:
    """Boxes whose noise stays inside the image."""
    boxes = torch.tensor([0.5, 0.4, 0.2, 0.1]).repeat(1, count, 1)
    return TargetBatch(boxes, torch.zeros(1, count, dtype=torch.int64), torch.ones(1, count, dtype=torch.bool))


@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_positives_move_less_than_half_the_box_and_negatives_more_but_less_than_a_whole_one(noise: float):
    torch.manual_seed(0)
    targets = small_boxes(200)
    noised = noised_targets(targets, 4, 400, 0.0, noise)
    wanted = cxcywh_to_xyxy(targets.boxes[0])
    low, high = torch.minimum(*sides(noised.boxes[0])), torch.maximum(*sides(noised.boxes[0]))
    moved = (torch.cat([low, high], -1).unflatten(0, (2, 2, 200)) - wanted) / (targets.boxes[0, :, [2, 3, 2, 3]] / 2 * noise)
    # a corner that moved past the other one comes back with the sides exchanged: only the boxes that kept theirs are measured
    kept = (noised.boxes[0, :, 2:] > 0).all(-1).unflatten(0, (2, 2, 200))
    positive, negative = moved[:, 0][kept[:, 0]].abs(), moved[:, 1][kept[:, 1]].abs()
    assert positive.max() <= 1.0001 and negative.min() >= 0.9999 and negative.max() <= 2.0001
    assert positive.mean() == pytest.approx(0.5, abs=0.05) and negative.mean() == pytest.approx(1.5, abs=0.1)


def sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    corners = cxcywh_to_xyxy(boxes)
    return corners[:, :2], corners[:, 2:]


def test_noised_boxes_stay_inside_the_image():
    torch.manual_seed(0)
    noised = noised_targets(batch_of([5, 3], 4), 4, 50, 0.5, 1.0)
    corners = cxcywh_to_xyxy(noised.boxes)
    assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6


def test_half_the_share_of_label_noise_draws_a_new_class():
    torch.manual_seed(0)
    targets = small_boxes(500)
    for share in (0.0, 0.5, 1.0):
        noised = noised_targets(targets, 4, 2000, share, 1.0)
        # one draw in four gives the old class again
        assert (noised.labels != 0).float().mean().item() == pytest.approx(share / 2 * 3 / 4, abs=0.02)
        assert noised.labels.max() <= 3


def test_without_noise_every_query_is_its_target():
    targets = batch_of([3, 3], 4, torch.Generator().manual_seed(0))
    noised = noised_targets(targets, 4, 6, 0.0, 0.0)
    torch.testing.assert_close(noised.boxes, targets.boxes.repeat(1, 4, 1))
    assert torch.equal(noised.labels, targets.labels.repeat(1, 4))


def test_a_batch_without_targets_has_no_denoising_queries():
    noised = noised_targets(batch_of([0, 0], 4), 4, 100, 0.5, 1.0)
    assert noised.match.shape == (2, 0) and noised.boxes.shape == (2, 0, 4)
    assert visible(0, noised.groups, 3, torch.device("cpu")).all()


def test_the_same_seed_draws_the_same_noise():
    targets = batch_of([3, 1], 4, torch.Generator().manual_seed(0))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(noised_targets(targets, 4, 10, 0.5, 1.0).boxes)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_matched_queries_see_each_other_and_every_group_sees_itself_and_them():
    groups, each, queries = 3, 4, 5
    allowed = visible(groups * each, groups, queries, torch.device("cpu"))
    for row in range(groups * each + queries):
        for column in range(groups * each + queries):
            matched = column >= groups * each
            same = row < groups * each and not matched and row // each == column // each
            assert bool(allowed[row, column]) == (matched or same), (row, column)
