"""Computes COCO's average precision of masks, by the engines of ``ap``: hotcoco for speed, pycocotools as the oracle."""

from collections.abc import Mapping
from typing import Any

import hotcoco
import numpy as np
import pycocotools.mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from workbench.analysis.detection.ap import APResult, Backend, Detections, detection_rows, evaluated, result_of, silently
from workbench.datasets.object_masks import area_of
from workbench.store.detections import MASK

_coco: Any = pycocotools.mask  # its hints know one RLE where it takes lists of them


def coco_mask_ap(
    ground_truth: Mapping[str, Any], detections: Detections, backend: Backend = "hotcoco", max_detections: int = 100
) -> APResult:
    """Returns mask AP and AR of detections.

    Sizes are areas of masks. A target without a mask, and a crowd or ignore region without one, count as a crowd region of the size of
    their box: detections on them are neither right nor wrong.

    Args:
        ground_truth: COCO dict with the size of every image; annotations have ``segmentation`` as compressed RLE (``Dataset.coco``).
        detections: as for ``ap.coco_ap``, with ``mask``.
        backend: implementation that computes it.
        max_detections: number of best-scored detections kept per image and class, at least 10.

    Raises:
        DataError: a detection names an image or a category that the ground truth does not have.
        NonFiniteError: a score or box is NaN or infinite.
    """
    truth = mask_ground_truth(ground_truth)
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    rows = detection_rows(truth, detections)
    masks: list[str] = np.asarray(detections[MASK.name]).tolist()
    results = [
        {
            "image_id": int(row[0]),
            "category_id": int(row[6]),
            "score": float(row[5]),
            "segmentation": {"size": sizes[int(row[0])], "counts": m},
        }
        for row, m in zip(rows, masks, strict=True)
    ]
    if backend == "hotcoco":
        gt = hotcoco.COCO(truth)
        evaluator = hotcoco.COCOeval(gt, gt.load_res(results), "segm")
    else:
        evaluator = silently(lambda: _pycocotools(truth, results))
    return result_of(evaluated(evaluator, backend, max_detections), backend, truth)


def mask_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """Returns only what mask AP needs. Annotations are numbered from 1, because the reference implementation reads 0 as "unmatched"."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    annotations: list[dict[str, Any]] = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        rle = annotation.get("segmentation")
        area = annotation.get("mask_area", annotation["area"])
        crowd = int(annotation.get("iscrowd", 0)) or int(rle is None)
        if rle is None:
            boxes = np.array([annotation["bbox"]], np.float64)
            (found,) = _coco.frPyObjects(boxes, *sizes[annotation["image_id"]])
            rle = {"size": list(found["size"]), "counts": found["counts"].decode("ascii")}
        annotations.append({
            "id": number, "image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": list(annotation["bbox"]),
            "segmentation": rle, "area": area, "iscrowd": crowd,
        })  # fmt: skip
    images = [{"id": image["id"], "width": image["width"], "height": image["height"]} for image in ground_truth["images"]]
    categories = [{"id": category["id"], "name": category["name"]} for category in ground_truth["categories"]]
    return {"images": images, "annotations": annotations, "categories": categories}


def _pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> COCOeval:
    gt: Any = COCO()
    dt: Any = COCO()
    gt.dataset = {**truth, "annotations": [dict(a) for a in truth["annotations"]]}
    masks = [result["segmentation"] for result in results]
    areas = [area_of(mask["counts"], *mask["size"]) for mask in masks]
    found = [{**r, "id": n, "area": a, "iscrowd": 0} for n, (r, a) in enumerate(zip(results, areas, strict=True), start=1)]
    dt.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": found}
    gt.createIndex()
    dt.createIndex()
    return COCOeval(gt, dt, "segm")
