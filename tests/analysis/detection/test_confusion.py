"""Confusion: against hotcoco, by hand, and each count is its rows."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.coco_examples import random_coco
from workbench.analysis.detection.ap import evaluate, light_ground_truth
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.confusion import BACKGROUND, compare_confusion, confusion_matrix, confusion_pairs

NAMES = {3: "class 3", 7: "class 7", 44: "class 44"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_hotcoco_counts_the_same(seed: int, threshold: float):
    truth, detections = random_coco(seed, ties=False, crowds=False)
    evaluator = evaluate(light_ground_truth(truth), detections, "hotcoco", 100)
    theirs = evaluator.confusion_matrix(iou_thr=0.5, max_det=1000, min_score=threshold)
    assert theirs["cat_ids"] == list(NAMES)
    assert (confusion_matrix(confusion_pairs(truth, detections, threshold), NAMES).to_numpy() == theirs["matrix"]).all()


def test_every_target_and_every_detection_over_the_threshold_is_in_one_row():
    truth, detections = random_coco(5, crowds=False)
    pairs = confusion_pairs(truth, detections, 0.5)
    assert (pairs["truth"] != BACKGROUND).sum() == len(truth["annotations"]) == len(pairs[pairs["target"] >= 0])
    kept = detections[detections["score"] >= 0.5]
    assert sorted(pairs.loc[pairs["predicted"] != BACKGROUND, "query"]) == sorted(kept["query"])
    assert not pairs.loc[pairs["target"] >= 0].duplicated(["image_id", "target"]).any()


def test_a_box_of_another_class_takes_the_target_only_where_no_better_one_did():
    truth = {"images": [{"id": 1}], "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}], "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "iscrowd": 0, "area": 100}]}  # fmt: skip
    rows = pd.DataFrame({"image_id": 1, "query": [5, 6, 7], "category_id": [7, 3, 3], "score": [0.9, 0.8, 0.2], "x1": 0.0, "y1": 0.0,
                         "x2": [9.0, 10.0, 10.0], "y2": 10.0})  # fmt: skip
    pairs = confusion_pairs(truth, rows)
    assert pairs[["truth", "predicted", "query"]].to_numpy().tolist() == [[3, 7, 5], [BACKGROUND, 3, 6]]
    assert pairs["iou"].iloc[0] == pytest.approx(0.9) and np.isnan(pairs["iou"].iloc[1])
    assert confusion_pairs(truth, rows.iloc[2:])[["truth", "predicted"]].to_numpy().tolist() == [[3, BACKGROUND]]


def test_a_pair_holds_the_corners_of_its_detection_and_of_its_target_and_none_where_there_is_background():
    truth, detections = random_coco(5, crowds=False)
    pairs = confusion_pairs(truth, detections, 0.3)
    sizes = {image["id"]: [one["bbox"] for one in truth["annotations"] if one["image_id"] == image["id"]] for image in truth["images"]}
    own = detections.set_index(["image_id", "query"])
    for pair in pairs.to_dict("records"):
        corners, target = ([pair[f"{side}{name}"] for name in ("x1", "y1", "x2", "y2")] for side in ("", "target_"))
        if pair["target"] < 0:
            assert np.isnan(target).all()
        else:
            x, y, w, h = sizes[pair["image_id"]][pair["target"]]
            assert target == pytest.approx([x, y, x + w, y + h])
        if pair["query"] < 0:
            assert np.isnan(corners).all()
        else:
            assert corners == pytest.approx(own.loc[(pair["image_id"], pair["query"]), ["x1", "y1", "x2", "y2"]].tolist())
    assert len(pairs[(pairs["target"] >= 0) & (pairs["query"] >= 0)]) > 5


def test_detections_on_crowds_are_left_out_and_crowds_are_no_targets():
    truth, detections = random_coco(4)
    pairs = confusion_pairs(truth, detections, 0)
    assert (pairs["truth"] != BACKGROUND).sum() == sum(not a["iscrowd"] for a in truth["annotations"])
    assert (pairs["predicted"] != BACKGROUND).sum() < len(detections)


@pytest.mark.parametrize("seed", range(3))
def test_the_difference_of_two_runs_is_that_of_their_matrices_on_all_images_and_on_every_resample(seed: int):
    truth, detections = random_coco(seed)
    images = [image["id"] for image in truth["images"]]
    half = detections[np.random.default_rng(seed).random(len(detections)) < 0.6].reset_index(drop=True)
    first, second = (confusion_pairs(truth, side, 0.2) for side in (detections, half))
    table = compare_confusion(first, second, NAMES, images, samples=15, seed=seed)
    before, after = (confusion_matrix(side, NAMES) for side in (first, second))
    assert table["baseline"].sum() == len(first) and table["other"].sum() == len(second)
    for row in table.to_dict("records"):
        cell = row["truth"], row["predicted"]
        assert (row["baseline"], row["other"]) == (before.loc[cell], after.loc[cell])
        assert row["difference"] == after.loc[cell] - before.loc[cell]
        sums = []
        for count in draws(len(images), 15, seed):
            own = [sum(int(count[images.index(i)]) for i, t, p in side[["image_id", "truth", "predicted"]].itertuples(index=False)
                       if (t, p) == cell) for side in (first, second)]  # fmt: skip
            sums.append(own[1] - own[0])
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(sums, [2.5, 97.5])))
    assert compare_confusion(first, first, NAMES, images, samples=5)["difference"].eq(0).all()
