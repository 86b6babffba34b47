"""Intervals of AP: every resample's AP is COCO's AP of the resampled data set."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.coco_examples import random_coco
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.bootstrap import bootstrap_ap, weighted_ap


def resampled(truth: dict[str, Any], detections: pd.DataFrame, counts: np.ndarray) -> tuple[dict[str, Any], pd.DataFrame]:
    """The data set in which image i stands ``counts[i]`` times, copies side by side."""
    images, annotations, tables = [], [], [detections.iloc[:0]]
    for image, count in zip(sorted(image["id"] for image in truth["images"]), counts, strict=True):
        for _ in range(int(count)):
            new = len(images)
            images.append({"id": new, "width": 640, "height": 640})
            annotations += [{**a, "image_id": new} for a in truth["annotations"] if a["image_id"] == image]
            tables.append(detections[detections["image_id"] == image].assign(image_id=new))
    return {**truth, "images": images, "annotations": annotations}, pd.concat(tables, ignore_index=True)


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=10)
def test_each_resample_has_the_ap_that_pycocotools_gives_its_data_set(seed: int):
    truth, detections = random_coco(seed, ties=False)
    counts = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=3)
    found = weighted_ap(truth, detections, counts)
    wanted = [coco_ap(*resampled(truth, detections, row), backend="pycocotools").ap for row in counts]
    assert found == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_equal_scores_in_different_images_rank_as_in_the_reference():
    truth, detections = random_coco(3)
    detections = detections.drop_duplicates(["image_id", "category_id", "score"])  # none within one image and class
    assert detections["score"].nunique() < len(detections) / 3
    counts = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=5)
    wanted = [coco_ap(*resampled(truth, detections, row), backend="pycocotools").ap for row in counts]
    assert weighted_ap(truth, detections, counts) == pytest.approx(wanted, abs=1e-9)


def test_the_value_is_the_ap_of_all_images_and_the_interval_holds_95_of_100_resamples():
    truth, detections = random_coco(4, images=30)
    interval = bootstrap_ap(truth, detections, samples=200, seed=5)
    assert interval.value == pytest.approx(coco_ap(truth, detections).ap, abs=1e-9)
    assert interval.low < interval.value < interval.high
    assert (interval.images, interval.samples, interval.level) == (30, 200, 0.95)
    counts = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), size=200)
    inside = [interval.low <= ap <= interval.high for ap in weighted_ap(truth, detections, counts)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    truth, detections = random_coco(5)
    assert bootstrap_ap(truth, detections, 50, seed=1) == bootstrap_ap(truth, detections, 50, seed=1)
    assert bootstrap_ap(truth, detections, 50, seed=1) != bootstrap_ap(truth, detections, 50, seed=2)


def test_without_detections_the_interval_is_zero_and_without_targets_undefined():
    truth, detections = random_coco(8)
    nothing = bootstrap_ap(truth, detections.iloc[:0], samples=20)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    undefined = bootstrap_ap({**truth, "annotations": []}, detections, samples=20)
    assert np.isnan([undefined.value, undefined.low, undefined.high]).all()


def test_resamples_that_lose_a_class_leave_it_out_of_their_mean():
    truth, detections = random_coco(9, ties=False)
    rare = next(a["image_id"] for a in truth["annotations"] if a["category_id"] == 44)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 44 or a["image_id"] == rare]
    counts = np.ones((1, 12))
    counts[0, (rare - 5) // 10] = 0
    wanted = coco_ap(*resampled(truth, detections, counts[0]), backend="pycocotools")
    assert np.isnan(wanted.per_class["class 44"].ap)
    assert weighted_ap(truth, detections, counts) == pytest.approx([wanted.ap], abs=1e-9)
