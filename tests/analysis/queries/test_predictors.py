"""Rank correlations against scipy's, the partial ones against ranks with the control regressed out."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from tests.analysis.answer_examples import random_answers, random_truth
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.queries.predictors import beyond_repetition, rank_correlations, target_properties


def random_properties(seed: int, rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4))
    frame = pd.DataFrame(columns.round(1), columns=["gain", "baseline", "quality", "score"])
    return frame.assign(image_id=rng.integers(0, 9, rows))


def plain_and_partial(frame: pd.DataFrame, name: str) -> tuple[float, float]:
    """scipy's Spearman coefficient; Pearson's of what a line through the ranks of the baseline leaves."""
    ranks = {column: stats.rankdata(frame[column]) for column in ("gain", "baseline", name)}

    def rest(values: np.ndarray) -> np.ndarray:
        slope, intercept = np.polyfit(ranks["baseline"], values, 1)
        return values - slope * ranks["baseline"] - intercept

    plain = stats.spearmanr(frame["gain"], frame[name]).statistic
    return float(plain), float(np.corrcoef(rest(ranks["gain"]), rest(ranks[name]))[0, 1])


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=10)
def test_correlations_are_spearmans_and_their_intervals_those_of_resampled_images(seed: int):
    frame = random_properties(seed)
    found = rank_correlations(frame, ("quality", "score"), samples=15, seed=seed)
    ids = sorted(frame["image_id"].unique())
    resamples = [
        pd.concat([frame[frame["image_id"] == i] for i, n in zip(ids, row, strict=True) for _ in range(n)])
        for row in draws(len(ids), 15, seed)
    ]
    wanted = {name: np.array([plain_and_partial(part, name) for part in (frame, *resamples)]) for name in ("quality", "score")}
    for row in found.itertuples():
        own = wanted[row.property]
        over = np.abs(own[:, 1]) - np.abs(wanted["quality"][:, 1])
        assert (row.correlation, row.partial, row.over_quality) == pytest.approx((own[0, 0], own[0, 1], over[0]), abs=1e-9)
        ends = (row.low, row.high, row.partial_low, row.partial_high, row.over_quality_low, row.over_quality_high)
        parts = [*np.percentile(own[1:, 0], [2.5, 97.5]), *np.percentile(own[1:, 1], [2.5, 97.5]), *np.percentile(over[1:], [2.5, 97.5])]
        assert ends == pytest.approx(tuple(parts), abs=1e-9)
        assert (row.n, row.images) == (40, len(ids))


def test_what_training_again_would_give_is_taken_off_on_the_same_resamples():
    distilled, again = random_properties(1).assign(target=range(40)), random_properties(2).assign(target=range(40))
    again = again.assign(image_id=distilled["image_id"])
    found = beyond_repetition(distilled.iloc[3:], again.iloc[:36], ("quality", "score"), samples=15, seed=6)
    both = distilled.iloc[3:36], again.iloc[3:36]
    ids = sorted(both[0]["image_id"].unique())
    for row in found.itertuples():
        own = []
        for frame in both:
            parts = [frame] + [pd.concat([frame[frame["image_id"] == i] for i, n in zip(ids, counts, strict=True) for _ in range(n)])
                               for counts in draws(len(ids), 15, 6)]  # fmt: skip
            own.append(np.array([plain_and_partial(part, row.property)[1] for part in parts]))
        difference = own[0] - own[1]
        assert (row.partial, row.repetition, row.difference) == pytest.approx((own[0][0], own[1][0], difference[0]))
        assert (row.low, row.high) == pytest.approx(tuple(np.percentile(difference[1:], [2.5, 97.5])))
        assert (row.n, row.images) == (33, len(ids))


def test_a_property_that_only_repeats_the_baseline_predicts_nothing_beyond_it():
    rng = np.random.default_rng(0)
    baseline = rng.random(300)
    frame = pd.DataFrame({
        "image_id": np.arange(300), "gain": -baseline + rng.normal(0, 0.1, 300), "baseline": baseline,
        "quality": baseline**3, "score": 1.0,
    })  # fmt: skip
    quality, score = rank_correlations(frame, ("quality", "score"), samples=20).itertuples()
    assert quality.correlation < -0.8 and math.isnan(quality.partial)
    assert math.isnan(score.correlation) and math.isnan(score.low)


def test_properties_are_those_of_the_queries_that_hold_the_target_before_training():
    teacher, distilled, baseline = random_answers(1, teacher_layers=3), random_answers(2), random_answers(3)
    gains, targets = target_gain(distilled, baseline), target_frame(random_truth(4))
    frame = target_properties(gains, teacher, baseline, targets)
    held = {(r.image_id, r.match): r for r in teacher.itertuples() if r.model == "teacher" and r.layer == 2 and r.match >= 0}
    student = {(r.image_id, r.match): r for r in baseline.itertuples() if r.step == 30 and r.layer == 1 and r.match >= 0}
    gain = {(r.image_id, r.target): r for r in gains.itertuples()}
    area = {(r.image_id, r.target): r.area for r in targets.itertuples()}
    assert {(r.image_id, r.target) for r in frame.itertuples()} == held.keys() & gain.keys() and len(frame) > 3
    for row in frame.itertuples():
        key = row.image_id, row.target
        t, s = held[key], student[key]
        assert (row.gain, row.baseline, row.quality, row.score) == (gain[key].gain, gain[key].baseline, t.quality, t.score)
        assert row.target_size == area[key]
        assert row.entropy == pytest.approx(stats.entropy([t.score, 1 - t.score], base=2), rel=1e-5)
        assert row.score_distance == pytest.approx(abs(t.score - s.score), abs=1e-6)
        assert row.box_distance == pytest.approx(1 - iou(t, s), abs=1e-6)
    numbers = rank_correlations(frame, samples=5)
    assert numbers["property"].tolist() == ["quality", "score", "entropy", "target_size", "box_distance", "score_distance"]


def iou(a: Any, b: Any) -> float:
    shared = 1.0
    for centre, size in (("cx", "w"), ("cy", "h")):
        sides = [(float(getattr(box, centre)), float(getattr(box, size)) / 2) for box in (a, b)]
        shared *= max(0.0, min(middle + half for middle, half in sides) - max(middle - half for middle, half in sides))
    return shared / (float(a.w * a.h) + float(b.w * b.h) - shared)


def test_no_targets_have_no_correlation():
    found = rank_correlations(random_properties(1).iloc[:0], ("quality",), samples=3)
    assert found.drop(columns=["property", "n", "images"]).isna().all(axis=None) and found["n"].item() == 0
