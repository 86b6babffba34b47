"""Queries recognised by their box, against a search through all pairings."""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from workbench.analysis.stability.churn import churn_over_steps
from workbench.analysis.stability.same_box import SAME_BOX_IOU, paired_boxes
from workbench.overlap import centred_iou


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = [max(min(a[k] + a[k + 2] / 2, b[k] + b[k + 2] / 2) - max(a[k] - a[k + 2] / 2, b[k] - b[k + 2] / 2), 0) for k in (0, 1)]
    inner = sides[0] * sides[1]
    return inner / (a[2] * a[3] + b[2] * b[3] - inner)


def best_pairing(now: np.ndarray, before: np.ndarray) -> dict[int, int]:
    """The one-to-one pairing of boxes with an IoU of 0.7 or more whose IoUs add up to most, found by trying all."""
    found: tuple[float, dict[int, int]] = (0.0, {})
    longer, shorter = (len(now), len(before)) if len(now) >= len(before) else (len(before), len(now))
    for chosen in itertools.permutations(range(longer), shorter):
        pairs = [(i, j) if len(now) >= len(before) else (j, i) for j, i in enumerate(chosen)]
        values = {(i, j): iou(now[i], before[j]) for i, j in pairs}
        kept = {i: j for (i, j), value in values.items() if value >= SAME_BOX_IOU}
        total = sum(values[pair] for pair in kept.items())
        found = max(found, (total, kept), key=lambda entry: entry[0])
    return found[1]


def near(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes that overlap each other by more and by less than 0.7."""
    return np.concatenate([0.5 + 0.1 * rng.random((count, 2)), 0.4 + 0.1 * rng.random((count, 2))], 1)


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=25)
def test_pairs_are_the_best_of_all_pairings_within_an_image_and_between_neighbouring_moments(seed: int):
    rng = np.random.default_rng(seed)
    counts = {(moment, image): int(rng.integers(0, 5)) for moment in range(3) for image in range(2)}
    group = np.repeat([moment * 2 + image for moment, image in counts], list(counts.values()))
    boxes = near(rng, len(group))
    order = rng.permutation(len(group))
    group, boxes = group[order], boxes[order]
    found = paired_boxes(group, 2, boxes)
    for name in range(6):
        now, before = np.flatnonzero(group == name), np.flatnonzero(group == name - 2)
        pairs = best_pairing(boxes[now], boxes[before]) if len(before) and len(now) else {}
        assert found[now].tolist() == [before[pairs[place]] if place in pairs else -1 for place in range(len(now))]


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=25)
def test_iou_is_that_of_the_formula(seed: int):
    a, b = near(np.random.default_rng(seed), 3), near(np.random.default_rng(seed + 1), 3)
    assert centred_iou(a, b) == pytest.approx([iou(x, y) for x, y in zip(a, b, strict=True)])
    assert centred_iou(np.zeros(4), np.zeros(4)) == 0


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=25)
def test_churn_by_box_counts_targets_whose_box_moved_and_queries_that_lost_their_target(seed: int):
    rng = np.random.default_rng(seed)
    count = 4

    def one_step() -> Iterator[tuple[int, tuple[int, int, np.ndarray]]]:
        return enumerate(zip(rng.permutation(50)[:count], rng.permutation(5)[:count], near(rng, count), strict=True))

    rows = [
        {"step": step, "model": "student", "image_id": 1, "layer": 0, "query": slot, "source": int(cell), "match": int(target),
         **dict(zip(("cx", "cy", "w", "h"), box, strict=True))}
        for step in (1, 2)
        for slot, (cell, target, box) in one_step()
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    result = churn_over_steps(frame, identity="box").loc[1]
    first, second = (frame[frame["step"] == step].set_index("match")[["cx", "cy", "w", "h"]] for step in (1, 2))
    common = sorted(set(first.index) & set(second.index))
    moved = [iou(first.loc[t].to_numpy(), second.loc[t].to_numpy()) < SAME_BOX_IOU for t in common]
    assert result["churn"] == pytest.approx(np.mean(moved)) and result["n"] == len(common)
    pairs = best_pairing(second.to_numpy(), first.to_numpy())
    kept = sum(second.index[i] == first.index[j] for i, j in pairs.items())
    assert result["instability"] == 2 * count - len(pairs) - kept
