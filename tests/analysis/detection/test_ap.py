"""AP is COCO's AP: equal to published output and to pycocotools."""

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.analysis.coco_examples import random_coco
from workbench.analysis.detection.ap import APResult, Backend, coco_ap
from workbench.errors import DataError, NonFiniteError

NUMBERS = [field.name for field in dataclasses.fields(APResult)][:12]
BACKENDS = get_args(Backend)


def twelve(result: APResult) -> np.ndarray:
    return np.array([getattr(result, name) for name in NUMBERS])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_published_numbers_of_the_oracle_come_out(shared_data: Path, backend: Backend):
    folder = shared_data / "coco_eval_oracle"
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    raw = pd.DataFrame(json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text()))
    boxes = np.array(raw.bbox.tolist())
    detections = raw[["image_id", "category_id", "score"]].assign(
        x1=boxes[:, 0], y1=boxes[:, 1], x2=boxes[:, 0] + boxes[:, 2], y2=boxes[:, 1] + boxes[:, 3]
    )
    result = coco_ap(truth, detections, backend)
    published = (folder / "val2014_fake_eval_res.txt").read_text().split("type=bbox")[1].split("type=keypoints")[0]
    printed = [float(line.split("=")[-1]) for line in published.splitlines() if line.strip().startswith("Average")]
    assert len(printed) == 12
    assert twelve(result) == pytest.approx(printed, abs=0.0005)
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((0.5045806987249628, 0.6969727247299577, 0.5729816669904824), abs=1e-6)


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=25)
def test_hotcoco_equals_pycocotools_with_crowds_ties_and_empty_images(seed: int):
    truth, detections = random_coco(seed)
    fast, oracle = coco_ap(truth, detections), coco_ap(truth, detections, "pycocotools")
    assert twelve(fast) == pytest.approx(twelve(oracle), abs=1e-6, nan_ok=True)
    for name, value in fast.per_class.items():
        assert dataclasses.astuple(value) == pytest.approx(dataclasses.astuple(oracle.per_class[name]), abs=1e-6, nan_ok=True)


def test_the_twelve_numbers_are_those_of_pycocotools_own_summary(tmp_path: Path):
    truth, detections = random_coco(1)
    for annotation in truth["annotations"]:
        annotation["id"] += 1  # the reference itself takes id 0 for "unmatched"
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    ground_truth = COCO(str(path))
    results = [
        {"image_id": int(d.image_id), "category_id": int(d.category_id), "score": d.score, "bbox": [d.x1, d.y1, d.x2 - d.x1, d.y2 - d.y1]}
        for d in detections.itertuples()
    ]
    evaluator = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert twelve(coco_ap(truth, detections)) == pytest.approx(evaluator.stats, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_detections_at_all_give_zero(backend: Backend):
    truth, detections = random_coco(2)
    result = coco_ap(truth, detections.iloc[:0], backend)
    assert (twelve(result) == 0).all()
    assert {value.ap for value in result.per_class.values()} == {0.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_no_targets_is_nan_and_none_in_json(backend: Backend):
    truth, detections = random_coco(3)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] == 3]
    result = coco_ap(truth, detections, backend)
    assert math.isnan(result.per_class["class 7"].ap) and result.per_class["class 7"].targets == 0
    assert result.ap == pytest.approx(result.per_class["class 3"].ap)
    assert result.to_json()["per_class"]["class 7"] == {"ap": None, "ap50": None, "targets": 0}
    truth["annotations"] = []
    assert coco_ap(truth, detections, backend).to_json()["coco"] == dict.fromkeys(NUMBERS)


def test_per_class_targets_leave_crowds_out():
    truth, detections = random_coco(4)
    counted = {name: value.targets for name, value in coco_ap(truth, detections).per_class.items()}
    by_hand = {f"class {k}": sum(a["category_id"] == k and not a["iscrowd"] for a in truth["annotations"]) for k in (3, 7, 44)}
    assert counted == by_hand and any(a["iscrowd"] for a in truth["annotations"])


def test_a_stored_arrow_table_gives_the_same_as_a_frame():
    truth, detections = random_coco(5)
    assert coco_ap(truth, pa.Table.from_pandas(detections)) == coco_ap(truth, detections)


def test_max_detections_cuts_per_image_and_class():
    truth, detections = random_coco(6)
    junk = pd.concat([detections.assign(score=detections.score + 2, x1=600.0, x2=601.0)] * 5)
    crowded = pd.concat([junk, detections])
    assert coco_ap(truth, crowded, max_detections=10).ap < coco_ap(truth, crowded, max_detections=100).ap
    for cut in (10, 100):
        assert coco_ap(truth, crowded, max_detections=cut).ap == pytest.approx(coco_ap(truth, crowded, "pycocotools", cut).ap, abs=1e-9)


@pytest.mark.parametrize(("column", "value", "word"), [("category_id", 0, "category ids"), ("image_id", 123456, "image ids")])
def test_detections_of_another_class_map_or_split_are_refused(column: str, value: int, word: str):
    truth, detections = random_coco(7)
    detections.loc[0, column] = value
    with pytest.raises(DataError, match=rf"{word}.*{value}"):
        coco_ap(truth, detections)


def test_a_nan_score_is_refused_with_its_image():
    truth, detections = random_coco(8)
    detections.loc[3, "score"] = float("nan")
    with pytest.raises(NonFiniteError, match=f"image {detections.image_id[3]}"):
        coco_ap(truth, detections)
