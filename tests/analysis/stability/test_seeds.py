"""Runs beside each other, by loops over the definitions."""

import statistics

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.analysis.answer_examples import random_answers, random_truth
from tests.analysis.query_examples import random_queries
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.stability.churn import agreement, churn_over_steps
from workbench.analysis.stability.seeds import found_by_both, found_targets, seed_spread


def test_the_spread_over_seeds_is_of_the_numbers_of_the_runs():
    frames = {f"run {seed}": churn_over_steps(random_queries(seed, steps=4 if seed else 3)) for seed in range(4)}
    spread = seed_spread(frames)
    assert set(spread["step"]) == {20, 30, 40} and len(spread) == 9
    for row in spread.itertuples():
        values = [v for frame in frames.values() for v in frame.loc[frame["step"] == row.step, row.measure].dropna()]
        assert row.n == len(values) == (3 if row.step == 40 else 4)
        assert (row.mean, row.minimum, row.maximum) == pytest.approx((statistics.mean(values), min(values), max(values)))
        assert row.deviation == pytest.approx(statistics.stdev(values))
        reach = stats.t.interval(0.95, len(values) - 1, row.mean, stats.sem(values))
        assert (row.low, row.high) == pytest.approx(reach)


def test_one_seed_has_no_interval_and_no_runs_no_rows():
    alone = seed_spread({"a": agreement(random_queries(1, teacher_layers=4))}, ("agreement",))
    assert (alone["n"] == 1).all() and alone[["low", "high", "deviation"]].isna().all(axis=None)
    assert (alone["mean"] == alone["maximum"]).all() and seed_spread({}).empty


def last(seed: int) -> pd.DataFrame:
    """Student rows of one step."""
    answers = random_answers(seed, images=6)
    return answers[(answers["model"] == "student") & (answers["step"] == 30)]


@pytest.mark.parametrize("by", [None, "label", "size"])
def test_targets_are_found_with_the_right_class_and_an_iou_of_a_half(by: str | None):
    targets = target_frame(random_truth(1, images=6))
    found = []
    for rows in (last(1), last(2)):
        answer = {(r.image_id, r.match): r for r in rows.itertuples() if r.layer == 1 and r.match >= 0}
        own = {}
        for target in targets.itertuples():
            row = answer.get((target.image_id, target.target))
            own[target.image_id, target.target] = row is not None and row.label == target.label and row.match_iou >= 0.5
        assert found_targets(rows, targets)["found"].tolist() == list(own.values())
        found.append(own)
    frame = found_by_both(last(1), last(2), targets, by, samples=30, seed=3)
    ids = sorted(targets["image_id"].unique())
    counts = draws(len(ids), 30, 3)
    for row in frame.itertuples():
        keys = [(t.image_id, t.target) for t in targets.itertuples() if by is None or getattr(t, by) == getattr(row, by)]
        told = [(found[0][key], found[1][key]) for key in keys]
        assert (row.both, row.only_first, row.only_second, row.neither) == tuple(
            told.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
        )
        assert (row.n, row.share, row.images) == (len(keys), told.count((True, True)) / len(keys), len({image for image, _ in keys}))
        weights = counts[:, [ids.index(image) for image, _ in keys]]
        values = [weight @ [all(pair) for pair in told] / weight.sum() for weight in weights if weight.sum()]
        assert (row.low, row.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_a_target_without_a_query_is_not_found():
    targets = target_frame(random_truth(1, images=6))
    nothing = last(1).assign(match=-1)
    assert not found_targets(nothing, targets)["found"].any()
    assert found_by_both(nothing, last(1), targets, samples=3)[["both", "only_first"]].sum(axis=None) == 0


def test_of_several_positive_candidates_one_that_is_right_is_enough():
    targets = target_frame(random_truth(1, images=6))
    some = targets.head(3).copy()
    rows = pd.DataFrame({
        "image_id": np.repeat(some["image_id"], 2), "match": np.repeat(some["target"], 2), "layer": 0,
        "label": np.repeat(some["label"], 2).to_numpy() + np.array([0, 0, 1, 0, 0, 1]), "match_iou": [0.4, 0.6, 0.9, 0.3, 0.2, 0.9],
    })  # fmt: skip
    assert found_targets(rows, targets)["found"].tolist() == [True, *[False] * (len(targets) - 1)]
