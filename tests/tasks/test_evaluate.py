"""What a detector is on a split: each number is that of the analysis, and KITTI's AP comes with KITTI's data."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.analysis.detection.test_kitti_ap import oracle
from tests.analysis.kitti_examples import random_kitti
from tests.examples import small_detector
from tests.flows import command
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.calibration import calibration_error
from workbench.analysis.detection.kitti_ap import kitti_ap
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.detection.tide import LABELS, MAIN, SPECIAL, error_summary, find_errors
from workbench.datasets.base import Dataset
from workbench.datasets.kitti import CLASSES
from workbench.datasets.opening import open_dataset
from workbench.detectors.detector import InputSpec
from workbench.files import read_json
from workbench.tasks.evaluate import judge_detections


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
        image_id=one.image_id, query=0, score=0.9, category_id=np.array(dataset.category_ids)[one.labels]
    )
    evaluation = judge_detections(dataset, found, samples=5)
    assert evaluation.kitti is None
    rows = {row["what"]: row for row in evaluation.rows()}
    assert rows["ap_large"]["value"] is None and rows["ap_large"]["low"] is None
    assert not any("KITTI" in what for what in rows)
    assert [rows[f"AP50 lost to {LABELS[name]}"]["of"] for name in (*MAIN, *SPECIAL)] == [
        "detections",
        "detections",
        "detections",
        "detections",
        "detections",
        "targets",
        "detections",
        "targets",
    ]
    missed = len(find_errors(dataset.coco(), found).targets) - len(found)
    assert rows["AP50 lost to missed targets"]["n"] == missed


def noisy_truth(dataset: Dataset, seed: int = 0) -> pa.Table:
    """Every target, DontCare left out, some of them moved far off, one false alarm an image: as a detector's table."""
    rng = np.random.default_rng(seed)
    rows = []
    for record in dataset.records:
        for g in np.flatnonzero(~record.ignore):
            shift = rng.normal(0, 3 if rng.random() < 0.8 else 60, 4)
            rows.append((record.image_id, len(rows), dataset.category_ids[record.labels[g]], rng.random(), *(record.boxes[g] + shift)))
        rows.append((record.image_id, len(rows), dataset.category_ids[0], rng.random() / 2, 100.0, 150.0, 220.0, 250.0))
    names = ["image_id", "query", "category_id", "score", "x1", "y1", "x2", "y2"]
    return pa.Table.from_pandas(pd.DataFrame(rows, columns=names), preserve_index=False)


def test_the_verb_gives_kittis_ap_of_the_real_sample_and_of_a_detector_that_knows_its_classes(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small_detector(spec=InputSpec(CLASSES, (0.5,) * 3, (0.25,) * 3, {"height": 96, "width": 320})).save(tmp_path / "detector")
    call = ("evaluate", str(tmp_path / "detector"), "--data", str(shared_data / "kitti_sample"), "--split", "all",
            "--device", "cpu", "--json", str(tmp_path / "rows.json"))  # fmt: skip

    def kitti_rows() -> dict[str, dict[str, Any]]:
        code, out, err = command(*call)
        assert code == 0 and "KITTI AP of Car, moderate" in out, err
        return {row["what"]: row for row in read_json(tmp_path / "rows.json") if row["what"].startswith("KITTI")}

    dataset = open_dataset(shared_data / "kitti_sample", "all")
    untrained = kitti_rows()
    found = noisy_truth(dataset)
    monkeypatch.setattr("workbench.tasks.evaluate.detect", lambda *_: found)
    rows = kitti_rows()
    assert set(rows) == set(untrained) and max(row["value"] or 0 for row in rows.values()) > 0
    for what, row in rows.items():
        name, difficulty = what.removeprefix("KITTI AP of ").split(", ")
        wanted = oracle(dataset, found.to_pandas(), name, difficulty)
        assert row["value"] == (None if np.isnan(wanted) else pytest.approx(wanted)) and (row["n"] == 0) == np.isnan(wanted)
