"""What a slot is worth: equal to taking its detections out of the file and asking pycocotools again."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from tests.analysis.slot_examples import random_slots
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.bootstrap import weighted_ap
from workbench.analysis.queries.value import ap_drops, image_blocks, slot_interval
from workbench.errors import DataError, NonFiniteError


def drop(truth: dict[str, Any], detections: pd.DataFrame, slot: int, cut: int = 100) -> float:
    """By definition."""
    whole, without = (coco_ap(truth, rows, max_detections=cut).ap for rows in (detections, detections[detections["query"] != slot]))
    return whole - without


@given(seed=st.integers(0, 10_000), cut=st.sampled_from([10, 12, 100]))
@hypothesis_settings(max_examples=3)
def test_the_drop_of_every_slot_is_what_pycocotools_loses_without_its_detections(seed: int, cut: int):
    truth, detections = random_slots(seed, images=3, copies=3)
    frame = ap_drops(truth, detections, blocks=0, max_detections=cut)
    assert frame["query"].tolist() == sorted(detections["query"].unique())
    whole = coco_ap(truth, detections, "pycocotools", cut).ap
    wanted = [whole - coco_ap(truth, detections[detections["query"] != slot], "pycocotools", cut).ap for slot in frame["query"]]
    assert frame["ap_drop"].tolist() == pytest.approx(wanted, abs=1e-12)
    assert frame["ap"].tolist() == pytest.approx([whole] * len(frame))
    assert frame["n"].tolist() == [(detections["query"] == slot).sum() for slot in frame["query"]]


def test_the_detection_behind_the_cut_comes_in_for_one_that_goes():
    truth = {
        "images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100}],
    }  # fmt: skip
    far = {"image_id": 1, "category_id": 1, "x1": 50.0, "y1": 50.0, "x2": 60.0, "y2": 60.0}
    rows = [{**far, "query": slot, "score": 0.9 - slot / 100} for slot in range(10)]
    rows.append({"image_id": 1, "category_id": 1, "x1": 0.0, "y1": 0.0, "x2": 10.0, "y2": 10.0, "query": 10, "score": 0.1})
    frame = ap_drops(truth, pd.DataFrame(rows), blocks=0, max_detections=10)
    assert frame["ap"].tolist() == [0] * 11
    assert frame["ap_drop"].tolist() == pytest.approx([-1 / 10] * 10 + [0])  # one hit after nine false alarms


def test_a_target_that_is_set_free_goes_from_hand_to_hand():
    truth = {
        "images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": [x, 0, 10, 10], "area": 100} for n, x in ((1, 0), (2, 3))],
    }  # fmt: skip
    # the first takes the left target, the second, which prefers it, the right one, the third nothing
    rows = [
        {"image_id": 1, "category_id": 1, "query": slot, "score": 0.9 - slot / 10, "x1": x, "y1": 0.0, "x2": x + 10, "y2": 10.0}
        for slot, x in enumerate((0.0, 1.0, 2.0))
    ]
    frame = ap_drops(truth, pd.DataFrame(rows), blocks=0)
    assert frame["ap_drop"].tolist() == pytest.approx([drop(truth, pd.DataFrame(rows), slot) for slot in range(3)])
    at_50 = {slot: coco_ap(truth, pd.DataFrame([row for row in rows if row["query"] != slot])).ap50 for slot in range(3)}
    assert at_50 == {0: 1, 1: 1, 2: 1}


def test_the_interval_is_the_jackknife_over_blocks_of_images():
    truth, detections = random_slots(6, images=9)
    frame = ap_drops(truth, detections, blocks=4, seed=3)
    block, blocks = image_blocks(9, 4, 3)
    assert blocks == 4 and sorted(np.bincount(block)) == [2, 2, 2, 3]
    parts = []
    for number in range(4):
        kept = [image["id"] for image, own in zip(sorted(truth["images"], key=lambda i: i["id"]), block, strict=True) if own != number]
        part = {**truth, "images": [{"id": i} for i in kept], "annotations": [a for a in truth["annotations"] if a["image_id"] in kept]}
        rows = detections[detections["image_id"].isin(kept)]
        parts.append([drop(part, rows, slot) for slot in frame["query"]])
    for column, (low, high, value) in enumerate(frame[["low", "high", "ap_drop"]].to_numpy()):
        values = [part[column] for part in parts]
        mean = math.fsum(values) / 4
        reach = stats.t.ppf(0.975, 3) * math.sqrt(3 / 4 * math.fsum((v - mean) ** 2 for v in values))
        assert (low, high) == pytest.approx((value - reach, value + reach), abs=1e-12)
    assert (frame["blocks"] == 4).all() and (frame["images"] == 9).all()


@pytest.mark.parametrize("cut", [10, 100])
def test_the_interval_of_one_slot_holds_95_of_100_poisson_resamples_of_its_drop(cut: int):
    truth, detections = random_slots(9, images=12)
    slot = int(ap_drops(truth, detections, blocks=0, max_detections=cut).nlargest(1, "ap_drop")["query"].iloc[0])
    interval = slot_interval(truth, detections, slot, samples=60, seed=4, max_detections=cut)
    assert interval.value == pytest.approx(drop(truth, detections, slot, cut)) and (interval.images, interval.samples) == (12, 60)
    counts = np.random.default_rng(4).poisson(1, (60, 12))
    whole, less = (weighted_ap(truth, rows, counts, cut) for rows in (detections, detections[detections["query"] != slot]))
    assert (interval.low, interval.high) == pytest.approx(np.percentile(whole - less, [2.5, 97.5]))
    nobody = slot_interval(truth, detections, 10_000, samples=5, max_detections=cut)
    assert (nobody.value, nobody.low, nobody.high) == (0, 0, 0)


def test_one_image_has_no_interval_and_no_targets_have_no_value():
    truth, detections = random_slots(7, images=1)
    frame = ap_drops(truth, detections)
    assert frame[["low", "high"]].isna().all(axis=None) and (frame["blocks"] == 0).all()
    nothing = ap_drops({**truth, "annotations": []}, detections)
    assert nothing[["ap", "ap_drop", "low", "high"]].isna().all(axis=None) and len(nothing) == len(frame)
    assert ap_drops(truth, detections.iloc[:0]).empty


def test_two_detections_of_a_class_by_one_query_and_broken_scores_are_refused():
    truth, detections = random_slots(8)
    with pytest.raises(DataError, match="two detections of one class"):
        ap_drops(truth, pd.concat([detections, detections.iloc[:1]]))
    with pytest.raises(NonFiniteError):
        ap_drops(truth, detections.assign(score=np.nan))
