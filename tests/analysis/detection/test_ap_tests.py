"""Verdicts: the same resamples for both sides, seeds as groups, and words that follow the interval."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.coco_examples import random_coco
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.ap_tests import (
    AP,
    CHURN,
    Quantity,
    changed_targets,
    compare_ap,
    compare_errors,
    compare_totals,
    judge,
    ratio,
)
from workbench.analysis.detection.bootstrap import draws, weighted_ap
from workbench.analysis.detection.tide import MAIN, SPECIAL, error_costs, find_errors, queries_behind


def spread(middle: float, width: float = 0.01) -> np.ndarray:
    """A value and 200 resamples around it, the same noise for every caller."""
    return np.concatenate([[middle], middle + width * np.linspace(-1, 1, 200)])


@pytest.mark.parametrize(
    ("other", "higher", "word"),
    [
        (0.5, True, "better"),
        (0.5, False, "worse"),
        (0.3, True, "worse"),
        (0.3, False, "better"),
        (0.4, True, "not distinguishable"),
        (0.4, False, "not distinguishable"),
    ],
)
def test_the_word_follows_the_interval_and_which_way_is_better(other: float, higher: bool, word: str):
    values = spread(other, width=0.02)  # against a baseline without noise the difference is as wide as this side
    verdict = judge(Quantity("thing", higher), {0: spread(0.4, width=0)}, {0: values}, images=10)
    assert (verdict.word, verdict.about) == (word, "these checkpoints")
    assert verdict.difference == pytest.approx(other - 0.4)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(np.percentile(values[1:] - 0.4, [2.5, 97.5])))


def test_noise_that_both_sides_share_cancels_and_noise_of_their_own_does_not():
    shared = judge(AP, {0: spread(0.40, 0.1)}, {0: spread(0.41, 0.1)}, images=10)
    assert shared.word == "better" and shared.low == pytest.approx(0.01)
    own = judge(AP, {0: spread(0.40, 0.1)}, {0: spread(0.41, -0.1)}, images=10)
    assert own.word == "not distinguishable"


def test_four_seeds_a_side_tell_about_these_checkpoints_and_five_about_this_method():
    baseline = {seed: spread(0.40 + 0.01 * seed) for seed in range(5)}
    other = {seed: spread(0.45 + 0.012 * seed) for seed in range(5)}
    four = judge(AP, {s: baseline[s] for s in range(4)}, other, images=10)
    assert (four.about, four.seeds) == ("these checkpoints", (4, 5))
    assert four.difference == pytest.approx(np.mean([0.45, 0.462, 0.474, 0.486, 0.498]) - 0.415)
    five = judge(AP, baseline, other, images=10)
    assert (five.about, five.seeds, five.word) == ("this method", (5, 5), "better")
    # differences 0.050, 0.052, ... 0.058: mean 0.054, standard deviation 0.0031623, t(0.975, 4) = 2.776445
    assert five.difference == pytest.approx(0.054)
    assert five.high - five.difference == pytest.approx(2.776445 * 0.0031622777 / 5**0.5, rel=1e-6)


def test_seeds_that_are_not_the_same_make_no_pairs():
    verdict = judge(AP, {seed: spread(0.4) for seed in range(5)}, {seed: spread(0.5) for seed in range(5, 10)}, images=10)
    assert verdict.about == "these checkpoints"


def test_seeds_that_disagree_are_not_distinguishable_however_sure_each_pair_is():
    steps = [0.2, -0.2, 0.15, -0.1, 0.05]
    verdict = judge(AP, {s: spread(0.4, 0) for s in range(5)}, {s: spread(0.4 + step, 0) for s, step in enumerate(steps)}, images=10)
    assert (verdict.about, verdict.word) == ("this method", "not distinguishable")


def test_a_number_that_nothing_defines_is_not_distinguishable():
    nothing = np.full(11, np.nan)
    verdict = judge(CHURN, {0: nothing}, {0: spread(0.4)[:11]}, images=10)
    assert verdict.word == "not distinguishable" and verdict.to_json()["difference"] is None


def test_the_sentence_holds_the_word_the_interval_n_and_what_it_is_about():
    verdict = judge(AP, {0: spread(0.40)}, {0: spread(0.45)}, images=1234)
    assert verdict.sentence() == (
        "AP: better (+5.0, 95 % interval +5.0 to +5.0; 1,234 images, 1 run against 1). The verdict is about these checkpoints."
    )
    many = judge(AP, {s: spread(0.4) for s in range(6)}, {s: spread(0.4) for s in range(6)}, images=9)
    assert many.sentence() == (
        "AP: not distinguishable (+0.0, 95 % interval +0.0 to +0.0; 9 images, 6 pairs of runs). The verdict is about this method."
    )
    assert json.loads(json.dumps(verdict.to_json()))["verdict"] == "better"


def test_ap_of_two_runs_is_compared_on_the_same_resamples():
    truth, baseline = random_coco(6, images=25)
    other = baseline.assign(score=baseline["score"] + np.random.default_rng(0).normal(0, 0.3, len(baseline)))
    verdict = compare_ap(truth, {0: baseline}, {0: other}, samples=100, seed=3)
    counts = np.random.default_rng(3).multinomial(25, np.full(25, 1 / 25), size=100)
    differences = weighted_ap(truth, other, counts) - weighted_ap(truth, baseline, counts)
    assert (verdict.low, verdict.high) == pytest.approx(np.percentile(differences, [2.5, 97.5]))
    assert verdict.difference == pytest.approx(coco_ap(truth, other).ap - coco_ap(truth, baseline).ap)
    assert (verdict.baseline, verdict.other) == pytest.approx((coco_ap(truth, baseline).ap, coco_ap(truth, other).ap))


def test_a_run_does_not_differ_from_itself():
    truth, detections = random_coco(7)
    verdict = compare_ap(truth, {0: detections}, {0: detections}, samples=20)
    assert (verdict.difference, verdict.low, verdict.high) == (0, 0, 0)


def test_seeds_of_a_side_are_averaged_within_each_resample():
    truth, first = random_coco(7, images=25)
    noise = np.random.default_rng(1)
    sides = [{s: first.assign(score=first["score"] + noise.normal(0, 0.3, len(first))) for s in range(k)} for k in (2, 3)]
    verdict = compare_ap(truth, sides[0], sides[1], samples=60, seed=2)
    counts = draws(25, 60, 2)
    means = [np.mean([weighted_ap(truth, found, counts) for found in side.values()], axis=0) for side in sides]
    assert (verdict.low, verdict.high) == pytest.approx(tuple(np.percentile(means[1] - means[0], [2.5, 97.5])))


def test_costs_of_errors_are_compared_type_by_type_and_less_is_better():
    truth, detections = random_coco(8, images=25)
    baseline_errors = find_errors(truth, detections)
    background = queries_behind(baseline_errors, "background")["query"]
    other_errors = find_errors(truth, detections[~detections["query"].isin(background)])
    table = compare_errors({0: baseline_errors}, {0: other_errors}, samples=80, seed=4).set_index("error")
    assert table.index.tolist() == [*MAIN, *SPECIAL]
    counts = draws(25, 80, 4)
    first, second = error_costs(baseline_errors, counts), error_costs(other_errors, counts)
    for error, row in table.iterrows():
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(second[str(error)] - first[str(error)], [2.5, 97.5])))
    assert table.loc["background", "verdict"] == "better" and table.loc["background", "high"] < 0
    assert table.loc["background", "baseline_count"] == len(background) and table.loc["background", "other_count"] == 0
    assert table.loc["missed", "baseline_count"] == (baseline_errors.targets["error"] == "missed").sum()


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=10)
def test_a_share_of_a_resample_is_that_of_its_copied_rows(seed: int):
    rng = np.random.default_rng(seed)
    images = np.sort(rng.choice(100, 6, replace=False))
    rows = pd.DataFrame({"image_id": rng.choice(images[:5], 9), "total": rng.random(9), "n": rng.integers(0, 3, 9)})
    counts = draws(6, 5, seed)
    for row, found in zip(counts, ratio(rows, images, counts), strict=True):
        copies = pd.concat([rows[rows["image_id"] == image] for image, times in zip(images, row, strict=True) for _ in range(times)])
        wanted = copies["total"].sum() / copies["n"].sum() if copies["n"].sum() else np.nan
        assert found == pytest.approx(wanted, nan_ok=True)


def test_totals_of_two_runs_are_compared_over_all_images_of_the_split():
    rows = pd.DataFrame({"image_id": range(40), "total": 1.0, "n": 4})
    better = rows.assign(total=np.where(np.arange(40) % 4 == 0, 0.5, 0.2))
    verdict = compare_totals(CHURN, {0: rows}, {0: better}, images=range(50), samples=100)
    assert (verdict.word, verdict.images) == ("better", 50)
    assert (verdict.baseline, verdict.other) == pytest.approx((0.25, better["total"].sum() / 160))


def test_targets_that_one_run_lost_or_gained_are_listed():
    truth, detections = random_coco(9)
    baseline = find_errors(truth, detections)
    found = baseline.targets[baseline.targets["error"] == "found"].iloc[0]
    gone = detections.drop(index=int(np.flatnonzero(detections["query"] == baseline.detections.loc[found["found_by"], "query"])[0]))
    other = find_errors(truth, gone)
    lost = changed_targets(baseline, other)
    assert (lost.iloc[0][["image_id", "target", "baseline", "change"]] == [found["image_id"], found["target"], "found", "lost"]).all()
    gained = changed_targets(other, baseline)
    assert gained["change"].tolist() == [{"lost": "gained", "gained": "lost"}.get(change, change) for change in lost["change"]]
    assert changed_targets(baseline, baseline).empty
