"""Matchings are minimum-cost assignments, whatever is masked, empty or permuted; costs equal their formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import generalized_box_iou

from tests.examples import batch_of, random_boxes, random_targets
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.targets import TargetBatch, Targets
from workbench.matching import (
    CostWeights,
    NonFiniteCostError,
    assign,
    box_costs,
    class_cost,
    match_targets,
    query_cost,
    soft_class_cost,
)

sizes = st.integers(0, 5)
seeds = st.integers(0, 2**32 - 1)


def least_cost(cost: np.ndarray) -> float:
    """Minimum over all one-to-one assignments of the smaller side."""
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    every_choice = itertools.permutations(range(cost.shape[1]), len(cost))
    return min(sum(cost[row, column] for row, column in enumerate(columns)) for columns in every_choice)


@given(sizes, sizes, seeds)
def test_an_assignment_has_the_least_cost_of_all_permutations(rows: int, columns: int, seed: int):
    cost = np.random.default_rng(seed).normal(size=(rows, columns))
    match = assign(torch.from_numpy(cost)).numpy()
    taken = np.flatnonzero(match >= 0)
    assert len(taken) == min(rows, columns)
    assert len(set(match[taken])) == len(taken)
    assert cost[taken, match[taken]].sum() == pytest.approx(least_cost(cost))


@given(sizes, sizes, seeds)
def test_masked_rows_and_columns_stay_out_and_the_rest_is_optimal(rows: int, columns: int, seed: int):
    random = np.random.default_rng(seed)
    cost = random.normal(size=(2, 3, rows, columns))
    use_rows, use_columns = random.random((2, 3, rows)) < 0.6, random.random((3, columns)) < 0.6
    match = assign(torch.from_numpy(cost), torch.from_numpy(use_columns), torch.from_numpy(use_rows)).numpy()
    assert match.shape == (2, 3, rows)
    for layer, image in itertools.product(range(2), range(3)):
        kept_rows, kept_columns = np.flatnonzero(use_rows[layer, image]), np.flatnonzero(use_columns[image])
        found = match[layer, image]
        taken = np.flatnonzero(found >= 0)
        assert set(taken) <= set(kept_rows) and set(found[taken]) <= set(kept_columns)
        assert len(set(found[taken])) == len(taken) == min(len(kept_rows), len(kept_columns))
        part = cost[layer, image][np.ix_(kept_rows, kept_columns)]
        assert cost[layer, image][taken, found[taken]].sum() == pytest.approx(least_cost(part))


def test_an_assignment_of_nothing_is_empty():
    assert assign(torch.zeros(2, 0, 4, 3)).shape == (2, 0, 4)
    assert assign(torch.zeros(2, 1, 4, 0)).tolist() == [[[-1] * 4]] * 2
    assert assign(torch.zeros(3, 0)).tolist() == [-1] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_cost_that_is_not_finite_names_layer_and_image(bad: float):
    cost = torch.zeros(2, 3, 4, 2)
    cost[1, 2, 0, 1] = bad
    cost[0, 1, 3, 0] = bad
    with pytest.raises(NonFiniteCostError) as caught:
        assign(cost)
    assert caught.value.positions == [(0, 1), (1, 2)]
    assert "(0, 1)" in str(caught.value) and "(1, 2)" in str(caught.value)


def test_a_cost_that_is_not_finite_where_nothing_may_match_is_no_error():
    cost = torch.tensor([[1.0, math.nan], [2.0, math.nan], [math.nan, math.nan]])
    columns, rows = torch.tensor([True, False]), torch.tensor([True, True, False])
    assert assign(cost, columns, rows).tolist() == [0, -1, -1]


@pytest.mark.parametrize("what", ["logits", "boxes"])
def test_nan_in_a_prediction_is_named_by_layer_and_image(what: str):
    logits, boxes = torch.randn(2, 3, 5, 4), random_boxes(2, 3, 5)
    {"logits": logits, "boxes": boxes}[what][1, 0, 2] = math.nan
    with pytest.raises(NonFiniteCostError) as caught:
        match_targets(logits, boxes, batch_of([2, 1, 0], 4))
    assert caught.value.positions == [(1, 0)]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=3), seeds)
def test_a_batch_is_matched_like_its_images_and_layers_alone(counts: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    targets = random_targets(counts, 4, generator)
    logits = torch.randn(2, len(counts), 5, 4, generator=generator)
    boxes = random_boxes(2, len(counts), 5, generator=generator)
    match = match_targets(logits, boxes, TargetBatch.of(targets))
    for layer, image in itertools.product(range(2), range(len(counts))):
        alone = match_targets(logits[layer, image][None, None], boxes[layer, image][None, None], TargetBatch.of([targets[image]]))
        assert torch.equal(match[layer, image], alone[0, 0])
        assert (match[layer, image] >= 0).sum() == min(5, counts[image])


@given(seeds)
def test_permuting_queries_permutes_the_matching(seed: int):
    generator = torch.Generator().manual_seed(seed)
    targets = batch_of([3, 5], 4, generator)
    logits, boxes = torch.randn(1, 2, 6, 4, generator=generator), random_boxes(1, 2, 6, generator=generator)
    order = torch.randperm(6, generator=generator)
    match = match_targets(logits, boxes, targets)
    assert torch.equal(match_targets(logits[:, :, order], boxes[:, :, order], targets), match[:, :, order])


@given(seeds)
def test_crowd_ignored_and_absent_targets_keep_their_index_and_are_never_matched(seed: int):
    generator = torch.Generator().manual_seed(seed)
    (target,) = random_targets([6], 4, generator)
    valid = torch.rand(6, generator=generator) < 0.5
    labels, boxes = target.labels.clone(), target.boxes.clone()
    labels[~valid], boxes[~valid] = -1, math.nan  # an ignore region has no class; what an absent box holds must not matter
    logits, predicted = torch.randn(2, 1, 5, 4, generator=generator), random_boxes(2, 1, 5, generator=generator)
    match = match_targets(logits, predicted, TargetBatch.of([Targets(boxes, labels, valid)]))
    kept = valid.nonzero()[:, 0]
    without = match_targets(logits, predicted, TargetBatch.of([Targets(target.boxes[valid], target.labels[valid], valid[valid])]))
    assert torch.equal(match, torch.where(without >= 0, kept[without.clamp(min=0)] if len(kept) else without, without))


def test_padding_a_batch_adds_slots_that_are_never_valid():
    targets = random_targets([0, 3, 1], 4)
    batch = TargetBatch.of(targets)
    assert batch.boxes.shape == (3, 3, 4)
    assert batch.valid.tolist() == [[False] * 3, [True] * 3, [True, False, False]]
    assert torch.equal(batch.boxes[1], targets[1].boxes) and torch.equal(batch.labels[2, :1], targets[2].labels)
    assert TargetBatch.of(random_targets([0, 0], 4)).boxes.shape == (2, 0, 4)


@given(seeds)
def test_the_sigmoid_class_cost_is_the_focal_formula(seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, 1, 3, 5, generator=generator)
    labels = torch.randint(5, (1, 4), generator=generator)
    cost = class_cost(logits, labels, "sigmoid")
    for layer, query, column in itertools.product(range(2), range(3), range(4)):
        p = 1 / (1 + math.exp(-float(logits[layer, 0, query, labels[0, column]])))
        wanted = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log1p(-p)
        assert float(cost[layer, 0, query, column]) == pytest.approx(wanted, abs=1e-5, rel=1e-5)


def test_extreme_logits_have_finite_costs():
    cost = class_cost(torch.tensor([-1e4, 1e4, 0.0]).view(1, 1, 3, 1), torch.zeros(1, 1, dtype=torch.int64), "sigmoid")
    assert torch.isfinite(cost).all()


def test_the_softmax_class_cost_is_minus_the_probability():
    logits = torch.randn(1, 1, 3, 5)
    cost = class_cost(logits, torch.tensor([[2, 0]]), "softmax")
    exponentials = logits[0, 0].double().exp()
    wanted = -(exponentials / exponentials.sum(-1, keepdim=True))[:, [2, 0]]
    torch.testing.assert_close(cost[0, 0].double(), wanted, atol=1e-6, rtol=0)


@given(seeds)
def test_the_class_cost_between_queries_is_summed_binary_cross_entropy(seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits, probability = 3 * torch.randn(2, 4, 6, generator=generator), torch.rand(2, 3, 6, generator=generator)
    cost = soft_class_cost(logits, probability)
    assert cost.shape == (2, 4, 3)
    for image, i, j in itertools.product(range(2), range(4), range(3)):
        wanted = F.binary_cross_entropy(logits[image, i].double().sigmoid(), probability[image, j].double(), reduction="sum")
        assert float(cost[image, i, j]) == pytest.approx(float(wanted), rel=1e-4, abs=1e-4)


def test_box_costs_are_l1_and_minus_giou():
    a, b = random_boxes(4), random_boxes(3)
    l1, giou = box_costs(a, b)
    torch.testing.assert_close(l1, torch.cdist(a, b, p=1))
    torch.testing.assert_close(giou, -generalized_box_iou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)))


def test_an_assignment_of_queries_minimises_the_weighted_sum_of_its_three_costs():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 4, 3, generator=generator), random_boxes(2, 4, generator=generator)
    teacher = torch.rand(2, 5, 3, generator=generator), random_boxes(2, 5, generator=generator)
    parts = query_cost(*student, *teacher)
    for weights in (CostWeights(1, 5, 2), CostWeights(0, 1, 0)):
        cost = (weights.class_ * parts[0] + weights.bbox * parts[1] + weights.giou * parts[2]).numpy()
        mate = assign(torch.from_numpy(cost))
        for image in range(2):
            assert cost[image, range(4), mate[image]].sum() == pytest.approx(least_cost(cost[image]), rel=1e-5)


def test_matching_sends_no_gradient():
    logits = torch.randn(1, 1, 3, 2, requires_grad=True)
    assert not match_targets(logits, random_boxes(1, 1, 3), batch_of([2], 2)).requires_grad
    costs: tuple[Tensor, ...] = query_cost(logits, random_boxes(1, 1, 3), torch.rand(1, 1, 3, 2), random_boxes(1, 1, 3))
    assert not any(cost.requires_grad for cost in costs)
