"""Detections against targets at IoU 0.5, one row each: what every answer about single errors starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.ap import Detections, evaluate, light_ground_truth

IOU = 0.5
BOX = ["x1", "y1", "x2", "y2"]


@dataclass(frozen=True)
class Matches:
    """COCO's matching at IoU 0.5, so that counting its hits gives AP50.

    Attributes:
        detections: those that AP counts (the best 100 of an image and class), in their own order: ``image_id``, ``query`` (-1 where
            it is not known), ``category_id``, ``score``, ``x1 y1 x2 y2`` in pixels, ``hit`` (found a target), ``counted`` (False: it lies
            on a crowd or ignore region and is neither right nor wrong), ``target`` (the one it found, or the region, else -1).
        targets: without crowd and ignore regions: ``image_id``, ``target`` (index in file order), ``category_id``, ``x1 y1 x2 y2``,
            ``area`` in square pixels, ``found_by`` (row in ``detections``, -1 = missed).
        images: ids of all images, ascending.
        classes: category id -> name.
    """

    detections: pd.DataFrame
    targets: pd.DataFrame
    images: np.ndarray
    classes: dict[int, str]


def match_detections(ground_truth: Mapping[str, Any], detections: Detections, max_detections: int = 100) -> Matches:
    """Matches detections with targets of their class, the best score first.

    Args:
        ground_truth: COCO dict; an annotation's ``target`` is its index in file order, by default its place among its image's.
        detections: as for ``coco_ap``; a column ``query`` is kept.
        max_detections: kept per image and class.

    Raises:
        DataError: a detection names an image or a category that the ground truth does not have.
        NonFiniteError: a score or box is NaN or infinite.
    """
    truth = light_ground_truth(ground_truth)
    table = detections if isinstance(detections, pd.DataFrame) else detections.to_pandas()
    frame = table.reset_index(drop=True).assign(hit=False, counted=True, target=-1)
    targets = _target_frame(truth, ground_truth)
    index = targets["target"].to_numpy()

    rows: list[int] = []
    hits: list[bool] = []
    ignored: list[bool] = []
    annotations: list[int] = []
    for entry in evaluate(truth, frame, "hotcoco", max_detections, ("all",), (IOU,)).evalImgs:
        if entry is not None:
            rows += entry["dtIds"]
            hits += entry["dtMatched"][0]
            ignored += entry["dtIgnore"][0]
            annotations += entry["dtMatches"][0]
    # both implementations number detections and annotations from 1
    row, hit, region = np.array(rows, int) - 1, np.array(hits, bool), np.array(ignored, bool)
    annotation = np.array(annotations, int) - 1
    frame.loc[row, "hit"] = hit & ~region
    frame.loc[row, "counted"] = ~region
    frame.loc[row[hit], "target"] = index[annotation[hit]]

    kept = np.sort(row)
    place = np.full(len(frame), -1)
    place[kept] = np.arange(len(kept))
    found_by = np.full(len(targets), -1)
    found_by[annotation[hit]] = place[row[hit]]
    own = targets.assign(found_by=found_by)[~targets["crowd"]].drop(columns="crowd")
    if "query" not in frame:
        frame["query"] = -1
    columns = ["image_id", "query", "category_id", "score", *BOX, "hit", "counted", "target"]
    return Matches(
        frame.loc[kept, columns].reset_index(drop=True),
        own.reset_index(drop=True),
        np.sort([image["id"] for image in truth["images"]]),
        {category["id"]: category["name"] for category in truth["categories"]},
    )


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of all pairs of xyxy boxes: ``[N, 4]``, ``[M, 4]`` to ``[N, M]``; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=-1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=-1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _target_frame(truth: Mapping[str, Any], ground_truth: Mapping[str, Any]) -> pd.DataFrame:
    """One row per annotation in the order of ``truth``."""
    annotations = truth["annotations"]
    boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    frame = pd.DataFrame({
        "image_id": np.array([a["image_id"] for a in annotations], np.int64),
        "category_id": np.array([a["category_id"] for a in annotations], np.int64),
        **{name: boxes[:, k] for k, name in enumerate(BOX)},
        "area": np.array([a["area"] for a in annotations], float),
        "crowd": np.array([a["iscrowd"] for a in annotations], bool),
    })
    place = frame.groupby("image_id").cumcount()
    given = [a.get("target", p) for a, p in zip(ground_truth["annotations"], place, strict=True)]
    frame.insert(1, "target", np.array(given, np.int64))
    return frame
