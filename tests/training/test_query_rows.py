"""Rows of the query table against a reference that computes one query at a time."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.store.batches import random_batch, rows_of
from workbench.store.query_schema import QUERY_SCHEMA


def iou_by_hand(a: list[float], b: list[float]) -> float:
    sides = []
    for axis in (0, 1):
        low = max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2)
        high = min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
        sides.append(max(high - low, 0.0))
    inner = sides[0] * sides[1]
    return inner / (a[2] * a[3] + b[2] * b[3] - inner)


def probabilities_by_hand(logits: list[float], activation: str) -> list[float]:
    if activation == "sigmoid":
        return [1 / (1 + math.exp(-z)) for z in logits]
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits[:-1]]


def one_row(batch: dict[str, Any], image: int, layer: int, query: int, gamma: float) -> dict[str, Any]:
    probability = probabilities_by_hand(batch["logits"][layer, image, query].tolist(), batch["activation"])
    box = batch["boxes"][layer, image, query].tolist()
    targets = batch["targets"]
    pairs = zip(targets.boxes[image].tolist(), targets.valid[image], strict=True)
    ious = [iou_by_hand(box, target) if valid else 0.0 for target, valid in pairs]
    match = int(batch["match"][layer, image, query])
    best = max(ious, default=0.0)
    mate = int(batch["mates"].query[layer, image, query])
    cost = batch["mates"].costs[layer, image, query].tolist() if mate >= 0 else [None] * 3
    loss = batch["losses"][layer, image, query].tolist()
    return {
        "epoch": 7, "image_id": batch["image_ids"][image], "model": "student", "layer": layer, "query": query,
        "source": int(batch["source"][image, query]), "label": probability.index(max(probability)), "score": max(probability),
        **dict(zip(("cx", "cy", "w", "h"), box, strict=True)),
        "match": match, "match_iou": ious[match] if match >= 0 else 0.0,
        "best_target": ious.index(best) if best > 0 else -1, "best_iou": best,
        "quality": probability[targets.labels[image, match]] ** gamma * ious[match] ** (1 - gamma) if match >= 0 else 0.0,
        "mate": mate, "mate_layer": 2 * layer + 1,
        "mate_cost_class": cost[0], "mate_cost_bbox": cost[1], "mate_cost_giou": cost[2],
        "train_mate": int(batch["train_mate"][layer, image, query]),
        "loss_class": loss[0], "loss_bbox": loss[1], "loss_giou": loss[2], "selected": bool(batch["selected"][layer, image, query]),
    }  # fmt: skip


@given(seed=st.integers(0, 10_000), activation=st.sampled_from(["sigmoid", "softmax"]), gamma=st.sampled_from([0.0, 0.3, 0.5]))
@hypothesis_settings(max_examples=20)
def test_every_value_is_the_one_computed_by_hand_in_image_layer_query_order(seed: int, activation: str, gamma: float):
    batch = random_batch(seed, activation=activation)
    table = rows_of(batch, gamma=gamma)
    assert table.schema == QUERY_SCHEMA
    expected = [one_row(batch, image, layer, query, gamma) for image in range(3) for layer in range(2) for query in range(4)]
    for row, wanted in zip(table.to_pylist(), expected, strict=True):
        assert row == {k: pytest.approx(v, rel=1e-4, abs=1e-6) if isinstance(v, float) else v for k, v in wanted.items()}


def test_a_batch_without_any_target_has_no_match_and_no_quality():
    table = rows_of(random_batch(1, targets=0))
    assert set(table["match"].to_pylist()) == set(table["best_target"].to_pylist()) == {-1}
    assert set(table["quality"].to_pylist()) == set(table["best_iou"].to_pylist()) == {0.0}


def test_what_was_not_given_is_null():
    batch = {**random_batch(2), "model": "teacher", "mates": None, "train_mate": None, "losses": None, "selected": None}
    table = rows_of(batch)
    nulls = {name for name in table.column_names if table[name].null_count}
    assert nulls == {
        "mate",
        "mate_layer",
        "mate_cost_class",
        "mate_cost_bbox",
        "mate_cost_giou",
        "train_mate",
        "loss_class",
        "loss_bbox",
        "loss_giou",
        "selected",
    }
    assert all(table[name].null_count == table.num_rows for name in nulls)
