"""Computes COCO average precision: hotcoco for speed, pycocotools as the oracle; both see the same arrays.

Values are 0..1 (shown x100). Lin et al., "Microsoft COCO", ECCV 2014, and the reference implementation ``pycocotools``.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import hotcoco
import numpy as np
import pandas as pd
import pyarrow as pa
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from workbench.errors import DataError, NonFiniteError

Backend = Literal["hotcoco", "pycocotools"]
Detections = pa.Table | pd.DataFrame

_IOU_50, _IOU_75 = 0, 5  # positions in the grid 0.50:0.05:0.95
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
# bounds in square pixels, as in COCO
AREAS: dict[str, tuple[float, float]] = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
_COLUMNS = ("image_id", "category_id", "score", "x1", "y1", "x2", "y2")


@dataclasses.dataclass(frozen=True)
class ClassAP:
    """AP of one class; NaN if it has no targets.

    Attributes:
        ap: mean over IoU 0.50:0.05:0.95.
        ap50: AP at IoU 0.5.
        targets: number of ground-truth boxes that are not crowd.
    """

    ap: float
    ap50: float
    targets: int


@dataclasses.dataclass(frozen=True)
class APResult:
    """The twelve COCO numbers, 0..1, NaN where undefined, and AP by class name.

    ``ar1``, ``ar10`` and ``ar100`` are recalls at 1, 10 and ``max_detections`` detections per image.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, ClassAP]

    def to_json(self) -> dict[str, Any]:
        """Returns ``{"coco": twelve numbers, "per_class": {name: {ap, ap50, targets}}}`` with None for NaN, as in evaluations.jsonl."""
        values = dataclasses.asdict(self)
        classes = values.pop("per_class")
        return {"coco": _without_nan(values), "per_class": {name: _without_nan(value) for name, value in classes.items()}}


def coco_ap(ground_truth: Mapping[str, Any], detections: Detections, backend: Backend = "hotcoco", max_detections: int = 100) -> APResult:
    """Returns box AP and AR of detections.

    Args:
        ground_truth: COCO dict (``images``, ``annotations``, ``categories``); crowd boxes count as in pycocotools.
        detections: columns ``image_id``, ``category_id`` (the ids of ``ground_truth``), ``score``, ``x1 y1 x2 y2`` in pixels. Of equal
            scores the earlier row ranks first.
        backend: implementation that computes it.
        max_detections: number of best-scored detections kept per image and class, at least 10.

    Raises:
        DataError: a detection names an image or a category that the ground truth does not have.
        NonFiniteError: a score or box is NaN or infinite.
    """
    truth = light_ground_truth(ground_truth)
    return result_of(evaluate(truth, detections, backend, max_detections), backend, truth)


def result_of(evaluator: Any, backend: Backend, truth: Mapping[str, Any]) -> APResult:
    """Returns the numbers of an evaluation.

    Args:
        evaluator: hotcoco's or pycocotools' ``COCOeval`` after ``evaluate()``.
        backend: which of the two it is.
        truth: its ground truth.
    """
    evaluator.accumulate() if backend == "hotcoco" else silently(evaluator.accumulate)
    precision, recall = np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])
    counts = _targets_per_category(truth)
    per_class = {
        category["name"]: ClassAP(
            _mean(precision[:, :, k, _ALL, -1]), _mean(precision[_IOU_50, :, k, _ALL, -1]), counts.get(category["id"], 0)
        )
        for k, category in enumerate(sorted(truth["categories"], key=lambda c: c["id"]))
    }
    return APResult(
        ap=_mean(precision[..., _ALL, -1]),
        ap50=_mean(precision[_IOU_50, ..., _ALL, -1]),
        ap75=_mean(precision[_IOU_75, ..., _ALL, -1]),
        ap_small=_mean(precision[..., _SMALL, -1]),
        ap_medium=_mean(precision[..., _MEDIUM, -1]),
        ap_large=_mean(precision[..., _LARGE, -1]),
        ar1=_mean(recall[..., _ALL, 0]),
        ar10=_mean(recall[..., _ALL, 1]),
        ar100=_mean(recall[..., _ALL, 2]),
        ar_small=_mean(recall[..., _SMALL, 2]),
        ar_medium=_mean(recall[..., _MEDIUM, 2]),
        ar_large=_mean(recall[..., _LARGE, 2]),
        per_class=per_class,
    )


def evaluate(
    truth: Mapping[str, Any],
    detections: Detections,
    backend: Backend,
    max_detections: int,
    areas: Sequence[str] = tuple(AREAS),
) -> Any:
    """Matches detections to targets per image, class and IoU threshold.

    Args:
        truth: result of ``light_ground_truth``.
        detections: as for ``coco_ap``.
        backend: implementation that matches.
        max_detections: number of detections kept per image and class.
        areas: names of ``AREAS``; targets outside a range are ignored, and so are detections outside that match nothing.

    Returns:
        hotcoco's or pycocotools' ``COCOeval`` after ``evaluate()``.
    """
    if max_detections < 10:
        raise ValueError(f"max_detections is {max_detections}; AR at 10 detections needs at least 10")
    rows = detection_rows(truth, detections)
    if backend == "hotcoco":
        gt = hotcoco.COCO(dict(truth))
        evaluator = hotcoco.COCOeval(gt, gt.load_res(rows), "bbox")
    else:
        evaluator = silently(lambda: _pycocotools(truth, rows))
    return evaluated(evaluator, backend, max_detections, areas)


def evaluated(evaluator: Any, backend: Backend, max_detections: int, areas: Sequence[str] = tuple(AREAS)) -> Any:
    """Returns a ``COCOeval`` after ``evaluate()`` with these limits; the arguments are those of ``evaluate``."""
    evaluator.params.maxDets = [1, 10, max_detections]
    evaluator.params.areaRng = [list(AREAS[name]) for name in areas]
    evaluator.params.areaRngLbl = list(areas)
    evaluator.evaluate() if backend == "hotcoco" else silently(evaluator.evaluate)
    return evaluator


def light_ground_truth(ground_truth: Mapping[str, Any]) -> dict[str, Any]:
    """Returns only what box AP needs, so that masks are neither copied nor parsed.

    Annotations are numbered from 1, because the reference implementation reads an id of 0 as "unmatched".
    """
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        box = annotation["bbox"]
        annotations.append(
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": list(box),
                "area": annotation.get("area", box[2] * box[3]),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    images = [{"id": image["id"], "width": image.get("width", 0), "height": image.get("height", 0)} for image in ground_truth["images"]]
    categories = [{"id": category["id"], "name": category["name"]} for category in ground_truth["categories"]]
    return {"images": images, "annotations": annotations, "categories": categories}


def detection_rows(truth: Mapping[str, Any], detections: Detections) -> np.ndarray:
    """Returns ``[D, 7]`` float64: image_id, x, y, width, height, score, category_id."""
    image, category, score, x1, y1, x2, y2 = (np.asarray(detections[name], dtype=np.float64) for name in _COLUMNS)
    rows = np.stack([image, x1, y1, x2 - x1, y2 - y1, score, category], axis=1)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise NonFiniteError(f"{bad.sum()} detections have a NaN or infinite box or score, the first on image {image[bad][0]:.0f}.")
    for what, values, known in (("image", image, truth["images"]), ("category", category, truth["categories"])):
        unknown = np.setdiff1d(values, [entry["id"] for entry in known])
        if len(unknown):
            raise DataError(
                f"detections name {what} ids that the ground truth does not have: {_listed(unknown)}. "
                "Check that both are of the same split and class map."
            )
    return rows


def _pycocotools(truth: Mapping[str, Any], rows: np.ndarray) -> COCOeval:
    gt, dt = COCO(), COCO()
    targets: Any = {**truth, "annotations": [dict(a) for a in truth["annotations"]]}
    results: Any = {
        "images": truth["images"],
        "categories": truth["categories"],
        "annotations": [
            {
                "id": number,
                "image_id": int(row[0]),
                "category_id": int(row[6]),
                "bbox": row[1:5].tolist(),
                "score": float(row[5]),
                "area": float(row[3] * row[4]),
                "iscrowd": 0,
            }
            for number, row in enumerate(rows, start=1)
        ],
    }
    gt.dataset, dt.dataset = targets, results
    gt.createIndex()
    dt.createIndex()
    return COCOeval(gt, dt, "bbox")


def _targets_per_category(truth: Mapping[str, Any]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + (not annotation["iscrowd"])
    return counts


def _mean(values: np.ndarray) -> float:
    """Returns the mean of the defined entries (-1 marks classes without targets)."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _listed(ids: np.ndarray) -> str:
    text = ", ".join(f"{value:.0f}" for value in ids[:5])
    return text + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def silently(function: Any) -> Any:
    """Calls a function and returns what it returns, without its prints: the reference implementation prints, a library must not."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function()
