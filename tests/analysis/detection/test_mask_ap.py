"""Mask AP is COCO's: equal to pycocotools, its own loading included."""

import dataclasses
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.analysis.detection.test_bootstrap import resampled
from workbench.analysis.detection.ap import APResult, Backend, coco_ap, silently
from workbench.analysis.detection.cells import Cells
from workbench.analysis.detection.intervals import coco_values
from workbench.analysis.detection.mask_ap import coco_mask_ap
from workbench.datasets.base import Dataset
from workbench.datasets.object_masks import encoded
from workbench.datasets.shapes import ShapesConfig, generate_shapes

NUMBERS = [field.name for field in dataclasses.fields(APResult)][:12]


def twelve(result: APResult) -> np.ndarray:
    return np.array([getattr(result, name) for name in NUMBERS])


def shapes(images: int = 25) -> Dataset:
    return generate_shapes(ShapesConfig(val=images), "val", masks=True)


def found_in(dataset: Dataset, seed: int = 0, wrong: float = 0.3) -> pd.DataFrame:
    """Masks of the targets, moved by some pixels; some of another class, some twice, with tied scores."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for record in dataset.records:
        assert record.masks is not None
        for g, pixels in enumerate(record.masks.arrays()):
            for _ in range(int(rng.integers(0, 4))):
                moved = np.roll(pixels, rng.integers(-3, 4, 2), (0, 1)) & (rng.random(pixels.shape) > 0.1)
                x1, y1, x2, y2 = record.boxes[g] + rng.normal(0, 2, 4)
                label = record.labels[g] if rng.random() > wrong else rng.integers(len(dataset.classes))
                rows.append({
                    "image_id": record.image_id, "category_id": dataset.category_ids[int(label)], "score": round(float(rng.random()), 1),
                    "x1": x1, "y1": y1, "x2": x2, "y2": y2, "mask": encoded(moved[None])[0].decode(),
                })  # fmt: skip
    return pd.DataFrame(rows)


def with_crowds(truth: dict[str, Any]) -> dict[str, Any]:
    """Every fifth target is a crowd region, and every seventh has no mask."""
    for number, annotation in enumerate(truth["annotations"]):
        annotation["iscrowd"] = int(number % 5 == 0)
        if number % 7 == 0:
            annotation.pop("segmentation")
            annotation.pop("mask_area")
    return truth


@pytest.mark.parametrize("seed", range(3))
def test_hotcoco_equals_pycocotools_with_crowds_ties_and_targets_without_masks(seed: int):
    dataset = shapes()
    truth, detections = with_crowds(dataset.coco()), found_in(dataset, seed)
    fast, oracle = coco_mask_ap(truth, detections), coco_mask_ap(truth, detections, "pycocotools")
    assert twelve(fast) == pytest.approx(twelve(oracle), abs=1e-6, nan_ok=True)
    assert 0.05 < fast.ap < 0.9 and fast.ap != pytest.approx(coco_ap(truth, detections).ap, abs=1e-3)
    for name, value in fast.per_class.items():
        assert dataclasses.astuple(value) == pytest.approx(dataclasses.astuple(oracle.per_class[name]), abs=1e-6, nan_ok=True)


def test_the_twelve_numbers_are_those_of_pycocotools_own_loading_and_summary():
    dataset = shapes()
    truth, detections = dataset.coco(), found_in(dataset)
    results = [
        {
            "image_id": row.image_id,
            "category_id": row.category_id,
            "score": row.score,
            "segmentation": {"size": [96, 96], "counts": row.mask},
        }
        for row in detections.itertuples()
    ]

    def oracle() -> np.ndarray:
        gt: Any = COCO()
        gt.dataset = {**truth, "annotations": [{**a, "area": a["mask_area"]} for a in truth["annotations"]]}
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return np.asarray(evaluation.stats)

    wanted = silently(oracle)
    wanted[wanted == -1] = np.nan
    assert twelve(coco_mask_ap(truth, detections)) == pytest.approx(wanted, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("backend", get_args(Backend))
def test_the_targets_own_masks_score_one_and_none_score_zero(backend: Backend):
    dataset = shapes(5)
    truth = dataset.coco()
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 1.0, "mask": a["segmentation"]["counts"],
         "x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0} for a in truth["annotations"]
    ]  # fmt: skip
    detections = pd.DataFrame(rows)
    assert coco_mask_ap(truth, detections, backend).ap == pytest.approx(1.0)
    assert coco_mask_ap(truth, detections[:0], backend).ap == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_that_are_resampled_are_those_of_pycocotools_when_every_image_counts_once(seed: int):
    dataset = shapes()
    truth, detections = with_crowds(dataset.coco()), found_in(dataset, seed)
    values = coco_values(truth, detections, np.ones((1, len(truth["images"]))), iou="mask")
    oracle = coco_mask_ap(truth, detections, "pycocotools")
    assert [float(values[name][0]) for name in NUMBERS] == pytest.approx(twelve(oracle), abs=1e-6, nan_ok=True)


def test_each_resample_has_the_mask_numbers_that_pycocotools_gives_its_data_set():
    dataset = shapes(8)
    truth, detections = with_crowds(dataset.coco()), found_in(dataset, 1)
    detections["score"] += np.random.default_rng(0).permutation(len(detections)) * 1e-6
    counts = np.random.default_rng(1).multinomial(8, np.full(8, 1 / 8), size=3)
    values = coco_values(truth, detections, counts, iou="mask")
    for place, row in enumerate(counts):
        again, rows = resampled(truth, detections, row)
        size = {name: truth["images"][0][name] for name in ("width", "height")}
        again["images"] = [image | size for image in again["images"]]
        oracle = coco_mask_ap(again, rows, "pycocotools")
        assert [float(values[name][place]) for name in NUMBERS] == pytest.approx(twelve(oracle), abs=1e-6, nan_ok=True)


def test_pairs_of_masks_are_those_of_a_loop_over_pixels_also_of_hundreds_in_one_image():
    rng = np.random.default_rng(0)
    wanted = np.zeros((300, 24, 32), bool)
    for mask in wanted:
        top, left = rng.integers(0, 20), rng.integers(0, 28)
        mask[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)] = True
    found = np.roll(wanted[:40], 1, 2)
    annotations = [
        {"id": g, "image_id": 5, "category_id": 1, "bbox": [0, 0, 32, 24], "area": 1.0, "iscrowd": int(g % 9 == 0),
         "segmentation": {"size": [24, 32], "counts": encoded(mask[None])[0].decode()}}
        for g, mask in enumerate(wanted)
    ]  # fmt: skip
    truth = {"images": [{"id": 5, "width": 32, "height": 24}], "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    boxes = {"image_id": 5, "category_id": 1, "x1": 0.0, "y1": 0.0, "x2": 32.0, "y2": 24.0}
    rows = pd.DataFrame([boxes | {"score": 1 - d / 100, "mask": encoded(mask[None])[0].decode()} for d, mask in enumerate(found)])
    cells = Cells(truth, rows, iou="mask")
    pairs: dict[tuple[int, int], float] = {}
    for d, own in enumerate(found):
        for g, other in enumerate(wanted):
            whole = own.sum() if g % 9 == 0 else (own | other).sum()
            share = (own & other).sum() / whole
            if share >= 0.5:
                pairs[d, g] = share
    got = {(int(cells.detections.row[d]), int(cells.targets.row[g])): iou
           for d, g, iou in zip(cells.pairs.detection, cells.pairs.target, cells.pairs.iou, strict=True)}  # fmt: skip
    assert got == {pair: pytest.approx(share) for pair, share in pairs.items()} and len(pairs) > 40
