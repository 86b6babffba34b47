"""The twelve numbers with intervals: the value is COCO's, every resample is COCO's of the resampled data set."""

import dataclasses

import numpy as np
import pytest

from tests.analysis.coco_examples import random_coco
from tests.analysis.detection.test_bootstrap import resampled
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.intervals import coco_intervals


def test_the_values_are_the_twelve_numbers_and_their_ends_those_of_resampled_data_sets():
    truth, detections = random_coco(1, ties=False)
    found = coco_intervals(truth, detections, samples=6, seed=2)
    numbers = coco_ap(truth, detections, backend="pycocotools").to_json()["coco"]
    assert {name: value.value for name, value in found.items()} == pytest.approx(numbers, abs=1e-9)
    again = [dataclasses.asdict(coco_ap(*resampled(truth, detections, row), backend="pycocotools")) for row in draws(12, 6, 2)]
    for name, value in found.items():
        assert (value.low, value.high) == pytest.approx(tuple(np.nanpercentile([one[name] for one in again], [2.5, 97.5])), abs=1e-9), name


def test_recall_of_few_detections_keeps_the_best_of_each_image_and_class():
    truth, detections = random_coco(3, images=20, classes=1)
    found = coco_intervals(truth, detections, samples=2)
    assert found["ar1"].value < found["ar10"].value <= found["ar100"].value
    ordered = detections.sort_values("score", ascending=False, kind="stable").drop_duplicates(["image_id", "category_id"])
    assert found["ar1"].value == pytest.approx(coco_ap(truth, ordered).ar100)


def test_numbers_without_targets_are_undefined():
    truth, detections = random_coco(4)
    found = coco_intervals({**truth, "annotations": []}, detections, samples=5)
    assert len(found) == 12 and all(np.isnan([one.value, one.low, one.high]).all() for one in found.values())
