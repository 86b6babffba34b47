"""Reliability: by hand, against hotcoco, and resamples against their copied data."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.coco_examples import random_coco
from tests.analysis.detection.test_bootstrap import resampled
from workbench.analysis.detection.ap import evaluate, light_ground_truth
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.calibration import calibration_error, calibration_errors, reliability
from workbench.analysis.detection.matches import Matches, match_detections


def of_scores(scores: list[float], hits: list[bool]) -> Matches:
    """Detections of one image each, all counted."""
    rows = pd.DataFrame({"image_id": range(len(scores)), "score": scores, "hit": hits, "counted": True})
    return Matches(rows, pd.DataFrame(), np.arange(len(scores)), {})


def test_the_error_of_four_detections_is_worked_out_by_hand():
    """0.91 and 0.97 in one bin, one right: 0.94 against 0.5. 0.05 wrong: 0.05 against 0. 1.0 is right and in the last: 2/3 and 0.96."""
    two = of_scores([0.91, 0.97, 0.05], [True, False, False])
    assert calibration_error(two).value == pytest.approx((2 * 0.44 + 0.05) / 3)
    four = reliability(of_scores([0.91, 0.97, 0.05, 1.0], [True, False, False, True]), samples=20)
    assert four["n"].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert four["precision"].iloc[9] == pytest.approx(2 / 3) and four["score"].iloc[9] == pytest.approx(0.96)
    assert np.isnan(four["precision"].iloc[4]) and four["low"].iloc[9] <= 2 / 3 <= four["high"].iloc[9]


@pytest.mark.parametrize("seed", range(4))
def test_hotcoco_finds_the_same_error_and_the_same_bins(seed: int):
    truth, detections = random_coco(seed, ties=False, crowds=False)
    evaluator = evaluate(light_ground_truth(truth), detections, "hotcoco", 100)
    theirs = evaluator.calibration(n_bins=10, iou_threshold=0.5)
    matches = match_detections(truth, detections)
    assert calibration_error(matches, samples=1).value == pytest.approx(theirs["ece"])
    bins = reliability(matches, samples=1)
    assert bins["n"].tolist() == [one["count"] for one in theirs["bins"]]
    there = bins["n"] > 0
    assert bins["precision"][there].tolist() == pytest.approx([one["avg_accuracy"] for one in theirs["bins"] if one["count"]])
    assert bins["score"][there].tolist() == pytest.approx([one["avg_confidence"] for one in theirs["bins"] if one["count"]])


def test_detections_on_crowds_are_not_judged():
    truth, detections = random_coco(4)
    matches = match_detections(truth, detections)
    assert reliability(matches, samples=1)["n"].sum() == matches.detections["counted"].sum() < len(matches.detections)


def test_the_error_of_a_resample_is_that_of_its_data_set():
    truth, detections = random_coco(5, ties=False)
    counts = draws(12, 4, seed=1)
    wanted = [calibration_error(match_detections(*resampled(truth, detections, row)), samples=1).value for row in counts]
    assert calibration_errors(match_detections(truth, detections), counts) == pytest.approx(wanted)


def test_nothing_detected_has_no_error():
    truth, detections = random_coco(6)
    assert np.isnan(calibration_error(match_detections(truth, detections.iloc[:0]), samples=3).value)
