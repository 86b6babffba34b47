"""Gain of targets, teacher queries and slots, by loops over the definition."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.answer_examples import random_answers, random_truth
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.queries.gain import common_step, gain_by, mean_gain, slot_gain, target_gain
from workbench.errors import RunError


def answers(rows: pd.DataFrame, step: int, layer: int = 1) -> dict[tuple[int, int], tuple[int, float]]:
    """By image and target: the query matched to it and its score x IoU."""
    return {
        (row.image_id, row.match): (row.query, float(row.score) * float(row.match_iou))
        for row in rows.itertuples()
        if row.model == "student" and row.step == step and row.layer == layer and row.match >= 0
    }


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=10)
def test_gain_of_a_target_is_score_times_iou_less_that_of_the_baseline(seed: int):
    distilled, baseline = random_answers(seed, steps=3, teacher_layers=2), random_answers(seed + 1, steps=2)
    frame = target_gain(distilled, baseline)
    now, before = answers(distilled, 20), answers(baseline, 20)
    assert frame["step"].unique().tolist() in ([20], [])
    wanted = {key: (now[key][0], before[key][0], now[key][1] - before[key][1]) for key in now.keys() & before.keys()}
    found = {(row.image_id, row.target): (row.query, row.baseline_query, pytest.approx(row.gain)) for row in frame.itertuples()}
    assert wanted == found
    assert (frame["distilled"] - frame["baseline"]).tolist() == pytest.approx(frame["gain"].tolist())
    another = target_gain(distilled, baseline, step=10)
    assert len(another) == len(answers(distilled, 10).keys() & answers(baseline, 10).keys())


def test_runs_without_a_common_step_are_not_compared():
    distilled, baseline = random_answers(0, steps=1), random_answers(1, steps=1).assign(step=35)
    with pytest.raises(RunError, match="the distilled run has 10, the baseline has 35"):
        common_step(distilled, baseline)


def test_means_of_slots_classes_and_all_are_over_their_targets_with_resampled_images():
    distilled, baseline = random_answers(5, images=7), random_answers(6, images=7)
    gains, targets = target_gain(distilled, baseline), target_frame(random_truth(7, images=7))
    label = {(row.image_id, row.target): (row.label, row.size) for row in targets.itertuples()}
    frames = {
        "query": (slot_gain(gains, 40, 2), lambda row: row.query),
        "label": (gain_by(gains, targets, "label", 40, 2), lambda row: label[row.image_id, row.target][0]),
        "size": (gain_by(gains, targets, "size", 40, 2), lambda row: label[row.image_id, row.target][1]),
        "all": (mean_gain(gains, 40, 2).assign(all=0), lambda row: 0),
    }
    ids = sorted(gains["image_id"].unique())
    counts = draws(len(ids), 40, 2)
    for name, (frame, key) in frames.items():
        rows = [(key(row), ids.index(row.image_id), row.gain) for row in gains.itertuples()]
        assert set(frame[name]) == {group for group, _, _ in rows}
        for found in frame.itertuples():
            own = [(image, gain) for group, image, gain in rows if group == getattr(found, name)]
            assert (found.n, found.images) == (len(own), len({image for image, _ in own}))
            assert found.gain == pytest.approx(math.fsum(gain for _, gain in own) / len(own))
            sums = [(sum(c[i] for i, _ in own), math.fsum(c[i] * g for i, g in own)) for c in counts]
            wanted = np.percentile([total / n for n, total in sums if n], [2.5, 97.5])
            assert (found.low, found.high) == pytest.approx(tuple(wanted))


def test_runs_that_share_no_target_have_no_gain():
    gains = target_gain(random_answers(8), random_answers(9).assign(match=-1))
    assert gains.empty and slot_gain(gains).empty and mean_gain(gains).empty
