"""What a detector is on a split: each number is that of the analysis, and KITTI's AP comes with KITTI's data."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.kitti_examples import random_kitti
from workbench.analysis.ap import coco_ap
from workbench.analysis.calibration import calibration_error
from workbench.analysis.kitti_ap import kitti_ap
from workbench.analysis.matches import match_detections
from workbench.analysis.tide import LABELS, MAIN, SPECIAL, error_summary, find_errors
from workbench.datasets import open_dataset
from workbench.evaluate import judge_detections


def test_rows_hold_the_twelve_numbers_classes_error_types_calibration_and_kittis_ap_each_with_n():
    dataset, detections = random_kitti(3, images=10)
    rows = pd.DataFrame(judge_detections(dataset, detections, samples=20).rows()).set_index("what")
    truth = dataset.coco()
    ap = coco_ap(truth, detections)
    numbers = {"ap": ap.ap, "ap50": ap.ap50, "ar100": ap.ar100, "AP of Car": ap.per_class["Car"].ap}
    assert rows["value"][list(numbers)].to_dict() == pytest.approx(numbers, abs=1e-9)
    assert rows.loc["AP of Car", "n"] == ap.per_class["Car"].targets and rows.loc["ap", "n"] == 10
    for error, numbers in zip((*MAIN, *SPECIAL), error_summary(truth, detections).values(), strict=True):
        row = rows.loc[f"AP50 lost to {LABELS[error]}"]
        assert (row["value"], row["n"]) == (pytest.approx(numbers["cost"]), numbers["count"]) and row["low"] <= row["high"]
    assert rows.loc["calibration error", "value"] == pytest.approx(calibration_error(match_detections(truth, detections)).value)
    kitti = kitti_ap(dataset, detections)
    for _, one in kitti.iterrows():
        row = rows.loc[f"KITTI AP of {one['class']}, {one['difficulty']}"]
        assert row["value"] == pytest.approx(one["ap"], nan_ok=True) and row["n"] == one["targets"]


def test_other_data_has_no_kitti_ap_and_numbers_that_nothing_defines_are_none():
    dataset = open_dataset("shapes", "val", val=4)
    one = dataset.records[0]
    found = pd.DataFrame(one.boxes, columns=["x1", "y1", "x2", "y2"]).assign(
        image_id=one.image_id, query=0, score=0.9, category_id=np.array(dataset.category_ids)[one.labels])
    evaluation = judge_detections(dataset, found, samples=5)
    assert evaluation.kitti is None
    rows = {row["what"]: row for row in evaluation.rows()}
    assert rows["ap_large"]["value"] is None and rows["ap_large"]["low"] is None
    assert not any("KITTI" in what for what in rows)
    assert [rows[f"AP50 lost to {LABELS[name]}"]["of"] for name in (*MAIN, *SPECIAL)] == [
        "detections", "detections", "detections", "detections", "detections", "targets", "detections", "targets"]
    missed = len(find_errors(dataset.coco(), found).targets) - len(found)
    assert rows["AP50 lost to missed targets"]["n"] == missed
