"""Slices: AP by size is COCO's, AP by crowding that of the images alone, recall a count of targets."""

import numpy as np
import pytest

from tests.analysis.coco_examples import random_coco
from tests.analysis.detection.test_matches import greedy, iou, xyxy
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.bootstrap import draws, weighted_ap
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.detection.slices import slice_images, slice_targets, slices

TRUTH, DETECTIONS = random_coco(2, images=25, ties=False)


@pytest.fixture(scope="module")
def table():
    return slices(TRUTH, DETECTIONS, samples=30, seed=1).set_index(["by", "slice"])


def asked() -> list[tuple[int, dict]]:
    return [(n, a) for n, a in enumerate(TRUTH["annotations"]) if not a["iscrowd"]]


FOUND = {place for word, place in greedy(TRUTH, DETECTIONS).values() if word == "hit"}


def recall_of(chosen: list[int]) -> float:
    return len(FOUND & set(chosen)) / len(chosen)


def test_ap_and_recall_by_size_are_cocos_and_a_count(table):
    numbers = coco_ap(TRUTH, DETECTIONS, backend="pycocotools")
    for name, low, high, wanted in (("small", 0, 1024, numbers.ap_small), ("medium", 1024, 9216, numbers.ap_medium),
                                    ("large", 9216, np.inf, numbers.ap_large)):  # fmt: skip
        row = table.loc[("size", name)]
        chosen = [n for n, a in asked() if low <= a["area"] < high]
        assert row["ap"] == pytest.approx(wanted, abs=1e-9)
        assert (row["targets"], row["recall"]) == (len(chosen), pytest.approx(recall_of(chosen)))


def test_ap_by_crowding_is_that_of_a_data_set_of_these_images(table):
    counts = {image["id"]: sum(a["image_id"] == image["id"] for _, a in asked()) for image in TRUTH["images"]}
    for name, low, high in (("1 to 3 targets", 1, 3), ("4 to 9 targets", 4, 9)):
        row = table.loc[("crowding", name)]
        images = [image for image, n in counts.items() if low <= n <= high]
        alone = {**TRUTH, "images": [i for i in TRUTH["images"] if i["id"] in images],
                 "annotations": [a for a in TRUTH["annotations"] if a["image_id"] in images]}  # fmt: skip
        assert row["ap"] == pytest.approx(coco_ap(alone, DETECTIONS[DETECTIONS["image_id"].isin(images)]).ap, abs=1e-9)
        assert row["images"] == len(images)
        assert row["recall"] == pytest.approx(recall_of([n for n, a in asked() if a["image_id"] in images]))
    empty = table.loc[("crowding", "10 or more targets")]
    assert empty["targets"] == 0 and np.isnan(empty["ap"]) and np.isnan(empty["recall"])


def test_recall_by_overlap_goes_by_the_nearest_other_target(table):
    nearest = {n: max([iou(xyxy(a), xyxy(b)) for m, b in asked() if m != n and b["image_id"] == a["image_id"]], default=0)
               for n, a in asked()}  # fmt: skip
    for name, low, high in (("apart", -1, 0), ("touching, IoU up to 0.3", 0, 0.3)):
        chosen = [n for n, value in nearest.items() if low < value <= high]
        row = table.loc[("overlap", name)]
        assert (row["targets"], row["recall"]) == (len(chosen), pytest.approx(recall_of(chosen)))
        assert np.isnan(row["ap"])


def test_the_interval_of_a_slice_is_over_resamples_of_all_images(table):
    counts = draws(25, 30, 1)
    per_image = np.array([sum(a["image_id"] == image["id"] for _, a in asked()) for image in TRUTH["images"]])
    values = weighted_ap(TRUTH, DETECTIONS, counts * ((per_image >= 4) & (per_image <= 9)))
    row = table.loc[("crowding", "4 to 9 targets")]
    assert (row["ap_low"], row["ap_high"]) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_every_target_is_in_one_slice_of_each_kind_and_its_images_are_listed(table):
    targets = slice_targets(match_detections(TRUTH, DETECTIONS))
    assert (targets[["size", "crowding", "overlap"]] != "").all(axis=None)
    for by in ("size", "crowding", "overlap"):
        assert table.loc[by]["targets"].sum() == len(targets)
    images = slice_images(targets, "size", "small")
    small = targets[targets["size"] == "small"]
    assert images["n"].sum() == len(small) and images["missed"].sum() == (small["found_by"] < 0).sum()
    assert images["missed"].is_monotonic_decreasing and len(images) == table.loc[("size", "small"), "images"]
