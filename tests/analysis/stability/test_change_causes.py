"""Why targets change their query: planted cases, and the rules and the margin again in loops."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.answer_examples import random_answers, random_truth
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.stability.change_causes import CAUSES, cause_table, churn_by_cause, explain_changes, unsettled_targets
from workbench.analysis.stability.churn import churn_over_steps
from workbench.analysis.stability.grouped import target_changes
from workbench.boxes import pairwise_iou_and_giou
from workbench.overlap import pairwise_giou

BOX = ["cx", "cy", "w", "h"]


def explained(queries: pd.DataFrame, targets: pd.DataFrame, identity: Any = "source") -> pd.DataFrame:
    """All pairs of evaluations, as ``Results.explained_changes`` goes through them."""
    changes = target_changes(queries, identity=identity)
    frames = [
        explain_changes(queries[queries["step"] == a], queries[queries["step"] == b], changes[changes["step"] == b], targets, identity)
        for a, b in itertools.pairwise(sorted(queries["step"].unique()))
    ]
    return pd.concat(frames, ignore_index=True)


def queries_of(*evaluations: list[tuple[int, int, float, float, float]]) -> pd.DataFrame:
    """Rows of one image: at each evaluation a (match, label, score, x, width) for every slot; boxes are as high as the image."""
    rows = [
        {"step": 10 * (number + 1), "model": "student", "image_id": 7, "layer": 1, "query": slot, "source": -1, "match": match,
         "label": label, "score": score, "cx": x + width / 2, "cy": 0.5, "w": width, "h": 1.0}
        for number, own in enumerate(evaluations) for slot, (match, label, score, x, width) in enumerate(own)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def targets_of(*boxes: tuple[int, float, float]) -> pd.DataFrame:
    """Targets of that image: label, x and width."""
    return pd.DataFrame(
        [
            {"image_id": 7, "target": n, "label": label, "cx": x + w / 2, "cy": 0.5, "w": w, "h": 1.0}
            for n, (label, x, w) in enumerate(boxes)
        ]
    )


ONE = targets_of((0, 0.2, 0.2))
GOOD, ALSO = (0, 0.9, 0.2, 0.2), (0, 0.8, 0.22, 0.2)  # both cover the target: IoU 1 and 0.18 / 0.22
FAR, NEAR = (0, 0.5, 0.36, 0.2), (0, 0.5, 0.04, 0.2)  # IoU 0.04 / 0.36 = 0.11


def test_a_target_that_alternates_between_two_queries_that_barely_touch_it_is_one_that_nobody_covers():
    found = explained(queries_of([(0, *FAR), (-1, *NEAR)], [(-1, *FAR), (0, *NEAR)], [(0, *FAR), (-1, *NEAR)]), ONE)
    assert found["cause"].tolist() == ["uncovered"] * 2
    assert found["iou_now"].tolist() == pytest.approx([0.04 / 0.36] * 2)


def test_a_target_that_two_right_boxes_take_in_turn_is_competed_for():
    found = explained(queries_of([(0, *GOOD), (-1, *ALSO)], [(-1, *GOOD), (0, *ALSO)], [(0, *GOOD), (-1, *ALSO)]), ONE)
    assert found["cause"].tolist() == ["competing"] * 2
    # costs by hand: the good one 2 (1 - 0.9), the other 2 (1 - 0.8) + 5 x 0.02 + 2 (1 - 0.18 / 0.22)
    difference = 2 * 0.1 + 5 * 0.02 + 2 * (1 - 0.18 / 0.22)
    assert found["margin_before"].tolist() == pytest.approx([difference, -difference])
    assert found["neighbour_iou"].tolist() == [0, 0]


def test_two_targets_that_exchange_their_queries_are_swapped_both():
    two = targets_of((0, 0.2, 0.2), (0, 0.26, 0.2))
    first, second = (0, 0.9, 0.21, 0.2), (0, 0.9, 0.25, 0.2)
    found = explained(queries_of([(0, *first), (1, *second)], [(1, *first), (0, *second)]), two)
    assert found["cause"].tolist() == ["swapped"] * 2 and found["swapped"].tolist() == [True] * 2
    assert found["neighbour_iou"].tolist() == pytest.approx([0.14 / 0.26] * 2)


def test_a_target_whose_query_says_another_class_now_and_then_is_undecided():
    other = (1, 0.9, 0.2, 0.2)
    found = explained(queries_of([(0, *GOOD), (-1, *other)], [(-1, *GOOD), (0, *other)], [(0, *GOOD), (-1, *other)]), ONE)
    assert found["cause"].tolist() == ["undecided"] * 2
    # also if both say the same wrong class
    wrong = queries_of([(0, *other), (-1, 1, 0.8, 0.22, 0.2)], [(-1, *other), (0, 1, 0.8, 0.22, 0.2)])
    assert explained(wrong, ONE)["cause"].tolist() == ["undecided"]


def test_a_missed_target_stays_one_when_a_neighbour_has_the_other_query():
    """The rules have an order: nobody covers it, though its query is swapped and says another class."""
    two = targets_of((0, 0.2, 0.2), (0, 0.7, 0.2))
    a, b = (1, 0.9, 0.36, 0.2), (1, 0.9, 0.7, 0.2)
    found = explained(queries_of([(0, *a), (1, *b)], [(1, *a), (0, *b)]), two).set_index("target")
    assert found.loc[0, "cause"] == "uncovered" and found.loc[0, "swapped"]


def test_a_target_has_the_cause_of_most_of_its_changes_and_of_equal_ones_the_first():
    wrong = (1, 0.9, 0.2, 0.2)
    steps = [[(0, *GOOD), (-1, *ALSO), (-1, *wrong)], [(-1, *GOOD), (0, *ALSO), (-1, *wrong)], [(-1, *GOOD), (-1, *ALSO), (0, *wrong)]]
    two = unsettled_targets(explained(queries_of(*steps), ONE)).iloc[0]
    assert (two["competing"], two["undecided"], two["cause"]) == (1, 1, "undecided")
    three = unsettled_targets(explained(queries_of(steps[1], *steps), ONE)).iloc[0]
    assert (three["competing"], three["undecided"], three["cause"], three["changes"], three["n"]) == (2, 1, "competing", 3, 3)
    assert three["class_flips"] == 1


def test_a_query_is_known_by_its_box_where_slots_mean_nothing():
    """Slots 0 and 1 change places, so that only the boxes tell that the neighbour's query was taken."""
    two = targets_of((0, 0.2, 0.2), (0, 0.26, 0.2))
    first, second = (0, 0.9, 0.17, 0.2), (0, 0.9, 0.29, 0.2)
    queries = queries_of([(0, *first), (1, *second)], [(0, *second), (1, *first)])
    found = explained(queries, two, "box")
    assert found["changed"].tolist() == [True, True] and found["cause"].tolist() == ["swapped"] * 2


def iou(a: Any, b: Any) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    width = max(min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2), 0)
    height = max(min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2), 0)
    return width * height / (aw * ah + bw * bh - width * height)


def cost(query: Any, target: Any) -> float:
    a, b = query[BOX].astype(float), target[BOX].astype(float)
    corners = [[x - w / 2, y - h / 2, x + w / 2, y + h / 2] for x, y, w, h in (a, b)]
    hull = (max(c[2] for c in corners) - min(c[0] for c in corners)) * (max(c[3] for c in corners) - min(c[1] for c in corners))
    union = a["w"] * a["h"] + b["w"] * b["h"]
    union /= 1 + iou(a, b)
    p = float(query["score"]) if query["label"] == target["label"] else 0.0
    return 2 * (1 - p) + 5 * sum(abs(a[name] - b[name]) for name in BOX) + 2 * (1 - iou(a, b) + (hull - union) / hull)


def margin(rows: pd.DataFrame, targets: pd.DataFrame, target: int, slot: int) -> float:
    """All ways to give the image's matched targets different queries, one by one."""
    matched = [t for _, t in targets.iterrows() if t["target"] in set(rows["match"])]
    queries = [q for _, q in rows.iterrows()]
    costs = [[cost(q, t) for q in queries] for t in matched]
    place = [int(t["target"]) for t in matched].index(target)
    held = [int(q["query"]) for q in queries].index(slot)
    best = {True: math.inf, False: math.inf}
    for chosen in itertools.permutations(range(len(queries)), len(matched)):
        total = sum(costs[n][q] for n, q in enumerate(chosen))
        best[chosen[place] == held] = min(best[chosen[place] == held], total)
    return best[False] - best[True] if len(queries) > len(matched) else math.nan


@given(seed=st.integers(0, 10_000), selected=st.booleans())
@hypothesis_settings(max_examples=4, deadline=None)
def test_every_number_behind_a_cause_is_that_of_loops(seed: int, selected: bool):
    queries = random_answers(seed, images=3, slots=4, layers=1, selected=selected)
    rng = np.random.default_rng(seed)
    targets = target_frame(random_truth(seed, images=3))[["image_id", "target", "label"]]
    targets = targets.assign(**{name: rng.uniform(0.2, 0.8, len(targets)) for name in BOX})
    found = explained(queries, targets)
    for row in found[found["changed"]].to_dict("records"):
        image, target = row["image_id"], row["target"]
        own = targets[targets["image_id"] == image].set_index("target", drop=False)
        labels, covers, holds = [], [], []
        for side, step in (("before", row["previous"]), ("now", row["step"])):
            there = queries[(queries["step"] == step) & (queries["image_id"] == image)]
            held = there[there["match"] == target].iloc[0]
            assert row[f"label_{side}"] == held["label"]
            assert row[f"iou_{side}"] == pytest.approx(iou(held[BOX].astype(float), own.loc[target, BOX].astype(float)))
            covers.append(max(iou(q[BOX].astype(float), own.loc[target, BOX].astype(float)) for _, q in there.iterrows()))
            assert row[f"covered_{side}"] == pytest.approx(covers[-1])
            assert row[f"margin_{side}"] == pytest.approx(margin(there, own, target, int(held["query"])), abs=1e-6, nan_ok=True)
            labels.append(held["label"])
            name = "source" if selected else "query"
            holds.append({int(q["match"]): int(q[name]) for _, q in there.iterrows() if q["match"] >= 0})
        before, now = holds
        swapped = any(t != target and q == now[target] for t, q in before.items()) or any(
            t != target and q == before[target] for t, q in now.items())  # fmt: skip
        assert row["swapped"] == swapped
        right = labels[0] == labels[1] == own.loc[target, "label"]
        wanted = "uncovered" if min(covers) < 0.5 else "swapped" if swapped else "competing" if right else "undecided"
        assert row["cause"] == wanted
    assert found.loc[~found["changed"], "cause"].isna().all()


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=5, deadline=None)
def test_churn_is_divided_among_the_causes_and_every_unsettled_target_has_one(seed: int):
    queries = random_answers(seed, steps=4, images=5)
    truth = target_frame(random_truth(seed, images=5))
    rng = np.random.default_rng(seed)
    targets = truth[["image_id", "target", "label"]].assign(**{name: rng.uniform(0.2, 0.8, len(truth)) for name in BOX})
    last = queries[queries["layer"] == 1]
    found = explained(last, targets)
    steps = churn_by_cause(found, ["step"], samples=5)
    whole = {row["step"]: row for row in churn_over_steps(queries).to_dict("records")}
    for step, own in steps.groupby("step"):
        assert own["cause"].tolist() == list(CAUSES)
        assert own["churn"].sum() == pytest.approx(whole[step]["churn"]) and own["n"].eq(whole[step]["n"]).all()
    together = churn_by_cause(found, [], samples=5)
    assert together["changes"].tolist() == [(found["cause"] == cause).sum() for cause in CAUSES]
    sizes = churn_by_cause(found, [], "size", truth, samples=5)
    assert sizes.groupby("cause")["changes"].sum().reindex(list(CAUSES)).tolist() == together["changes"].tolist()
    unsettled = unsettled_targets(found)
    moved = found[found["changed"]].groupby(["image_id", "target"]).size()
    assert dict(zip(zip(unsettled["image_id"], unsettled["target"], strict=True), unsettled["changes"], strict=True)) == moved.to_dict()
    assert (unsettled[list(CAUSES)].sum(axis=1) == unsettled["changes"]).all() and set(unsettled["cause"]) <= set(CAUSES)
    assert unsettled["changes"].is_monotonic_decreasing
    table = cause_table(unsettled)
    assert table["cause"].tolist() == list(CAUSES) and table["targets"].sum() == len(unsettled)


def test_nothing_changes_where_there_is_one_evaluation_or_no_change():
    no_rows = pd.DataFrame(columns=["image_id", "query", "source", "label", "score", "match", *BOX])
    nothing = explain_changes(no_rows, no_rows, target_changes(queries_of([(0, *GOOD)])), ONE)
    assert nothing.empty and "cause" in nothing
    still = explained(queries_of([(0, *GOOD)], [(0, *GOOD)]), ONE)
    assert len(still) == 1 and unsettled_targets(still).empty and cause_table(unsettled_targets(still))["targets"].sum() == 0
    assert churn_by_cause(still, [], samples=3)["churn"].tolist() == [0] * 4


def test_generalised_iou_is_that_of_the_matching():
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([low, low + rng.uniform(0, 0.5, (n, 2))], 1) for n in (6, 4) for low in [rng.uniform(0, 0.6, (n, 2))])
    _, wanted = pairwise_iou_and_giou(torch.tensor(a), torch.tensor(b))
    assert pairwise_giou(a, b) == pytest.approx(wanted.numpy())
