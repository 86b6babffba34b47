"""Detections against targets at IoU 0.5: a loop that knows nothing of the evaluators finds the same."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.coco_examples import random_coco
from workbench.analysis.detection.ap import coco_ap, evaluate, light_ground_truth
from workbench.analysis.detection.matches import match_detections
from workbench.errors import DataError, NonFiniteError
from workbench.overlap import pairwise_iou


def iou(a: Any, b: Any, crowd: bool = False) -> float:
    """Of two xyxy boxes; a crowd is divided by the first box's area alone."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (area[0] if crowd else sum(area) - shared)


def xyxy(annotation: dict[str, Any]) -> tuple[float, ...]:
    x, y, width, height = annotation["bbox"]
    return x, y, x + width, y + height


def greedy(truth: dict[str, Any], detections: pd.DataFrame, most: int = 100) -> dict[int, tuple[str, int]]:
    """COCO's rule at IoU 0.5, row by row: what became of each detection that counts, and the place of its annotation."""
    result: dict[int, tuple[str, int]] = {}
    for (image, category), own in detections.groupby(["image_id", "category_id"]):
        taken: set[int] = set()
        there = [(n, a) for n, a in enumerate(truth["annotations"]) if a["image_id"] == image and a["category_id"] == category]
        for row in list(own.sort_values("score", ascending=False, kind="stable").index)[:most]:
            box = detections.loc[row, ["x1", "y1", "x2", "y2"]].tolist()
            free = [(iou(box, xyxy(a)), n) for n, a in there if not a["iscrowd"] and n not in taken]
            regions = [(iou(box, xyxy(a), crowd=True), n) for n, a in there if a["iscrowd"]]
            result[row] = ("wrong", -1)
            if max(free, default=(0, -1))[0] >= 0.5:
                result[row] = ("hit", max(free)[1])
                taken.add(max(free)[1])
            elif max(regions, default=(0, -1))[0] >= 0.5:
                result[row] = ("region", max(regions)[1])
    return result


@given(seed=st.integers(0, 10_000), ties=st.booleans(), most=st.sampled_from([10, 100]))
@hypothesis_settings(max_examples=12)
def test_every_detection_is_matched_as_by_a_loop_over_its_image_and_class(seed: int, ties: bool, most: int):
    truth, detections = random_coco(seed, images=5, classes=2, ties=ties)
    matches = match_detections(truth, detections, most)
    wanted = greedy(truth, detections, most)
    kept = sorted(wanted)
    assert matches.detections["query"].tolist() == detections.loc[kept, "query"].tolist()
    words = np.select([matches.detections["hit"], ~matches.detections["counted"]], ["hit", "region"], "wrong")
    assert words.tolist() == [wanted[row][0] for row in kept]
    # a target is numbered by its place among the annotations of its image
    place = pd.Series([a["image_id"] for a in truth["annotations"]]).groupby([a["image_id"] for a in truth["annotations"]]).cumcount()
    assert matches.detections["target"].tolist() == [-1 if wanted[row][1] < 0 else place[wanted[row][1]] for row in kept]


def test_targets_know_the_detection_that_found_them_and_regions_are_none():
    truth, detections = random_coco(2)
    matches = match_detections(truth, detections)
    assert len(matches.targets) == sum(not a["iscrowd"] for a in truth["annotations"])
    found = matches.targets[matches.targets["found_by"] >= 0]
    rows = matches.detections.loc[found["found_by"]]
    assert rows["hit"].all() and len(rows) == matches.detections["hit"].sum()
    assert rows["target"].tolist() == found["target"].tolist() and rows["image_id"].tolist() == found["image_id"].tolist()


def test_an_index_that_the_ground_truth_gives_its_boxes_is_kept():
    truth, detections = random_coco(3)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["target"] = 1000 + number
    assert match_detections(truth, detections).targets["target"].min() >= 1000


def test_hits_over_targets_is_the_recall_that_ap_is_made_of():
    truth, detections = random_coco(4, classes=1)
    matches = match_detections(truth, detections)
    assert len(matches.detections) == len(detections)
    one = detections.assign(score=matches.detections["hit"].to_numpy().astype(float))
    # with every hit ranked first precision is 1 up to the recall reached
    recall = matches.detections["hit"].sum() / len(matches.targets)
    assert coco_ap(truth, one).ap50 == pytest.approx((np.floor(100 * recall + 1e-9) + 1) / 101)


def test_without_detections_or_targets_the_frames_are_empty():
    truth, detections = random_coco(5)
    assert match_detections(truth, detections.iloc[:0]).targets["found_by"].eq(-1).all()
    nothing = match_detections({**truth, "annotations": []}, detections.drop(columns="query"))
    assert nothing.targets.empty and not nothing.detections["hit"].any() and nothing.detections["query"].eq(-1).all()


def test_boxes_without_area_overlap_nothing():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 1, 1], [0, 0, 2, 1.0]])
    assert pairwise_iou(boxes, boxes) == pytest.approx(np.array([[1, 0, 0.5], [0, 0, 0], [0.5, 0, 1]]))


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=10)
def test_overlaps_of_exactly_one_half_and_ties_go_as_in_the_reference(seed: int):
    truth, detections = random_coco(seed, images=4, classes=1)
    rng = np.random.default_rng(seed)
    for annotation in truth["annotations"]:
        annotation["bbox"] = [*rng.integers(0, 6, 2).tolist(), *rng.integers(1, 7, 2).tolist()]
    corner, size = rng.integers(0, 6, (len(detections), 2)), rng.integers(1, 7, (len(detections), 2))
    detections[["x1", "y1"]], detections[["x2", "y2"]] = corner, corner + size
    wanted: dict[int, tuple[bool, bool, int]] = {}
    for entry in evaluate(light_ground_truth(truth), detections, "pycocotools", 100, ("all",)).evalImgs:
        if entry is not None:
            for number, match, ignored in zip(entry["dtIds"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True):
                place = int(match) - 1
                image = [n for n, a in enumerate(truth["annotations"]) if a["image_id"] == entry["image_id"]]
                wanted[number - 1] = (match > 0 and not ignored, not ignored, image.index(place) if match else -1)
    found = match_detections(truth, detections).detections
    rows = list(zip(found["hit"].tolist(), found["counted"].tolist(), found["target"].tolist(), strict=True))
    assert rows == [wanted[row] for row in sorted(wanted)]


def test_detections_of_unknown_images_and_broken_boxes_are_refused():
    truth, detections = random_coco(5)
    with pytest.raises(DataError, match="image ids"):
        match_detections(truth, detections.assign(image_id=4))
    with pytest.raises(NonFiniteError):
        match_detections(truth, detections.assign(x1=np.nan))
