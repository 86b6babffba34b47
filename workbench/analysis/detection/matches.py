"""Matches detections with targets at IoU 0.5, one row each; all numbers about single errors start from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.cells import Cells
from workbench.analysis.detection.targets import annotation_frame

IOU = 0.5
BOX = ["x1", "y1", "x2", "y2"]


@dataclass(frozen=True)
class Matches:
    """COCO's matching at IoU 0.5, so that counting its hits gives AP50.

    Attributes:
        detections: those that AP counts (the best 100 of an image and class), in their own order: ``image_id``, ``query`` (-1 if
            unknown), ``category_id``, ``score``, ``x1 y1 x2 y2`` in pixels, ``hit`` (found a target), ``counted`` (False if it lies on a
            crowd or ignore region and is neither right nor wrong), ``target`` (the one it found, or the region, otherwise -1).
        targets: without crowd and ignore regions: ``image_id``, ``target`` (index in file order), ``category_id``, ``x1 y1 x2 y2``,
            ``area`` in square pixels, ``found_by`` (row in ``detections``, -1 = missed).
        images: ids of all images, ascending.
        classes: name by category id.
    """

    detections: pd.DataFrame
    targets: pd.DataFrame
    images: np.ndarray
    classes: dict[int, str]


def match_detections(ground_truth: Mapping[str, Any], detections: Detections, max_detections: int = 100) -> Matches:
    """Matches detections with targets of their class, the best score first.

    Args:
        ground_truth: COCO dict; an annotation's ``target`` is its index in file order, by default its place within its image.
        detections: as for ``coco_ap``; a column ``query`` is kept.
        max_detections: number of detections kept per image and class.

    Raises:
        DataError: a detection names an image or a category that the ground truth does not have.
        NonFiniteError: a score or box is NaN or infinite.
    """
    cells = Cells(ground_truth, detections, max_detections)
    targets = annotation_frame(ground_truth)
    crowd = targets["crowd"].to_numpy()
    # cells sort their detections and targets; bring both back to the given order
    held = cells.held(cells.targets.crowd)[:, 0]
    within = cells.detections.rank < max_detections
    row = cells.detections.row[within]
    order = np.argsort(row)
    kept, held = row[order], held[within][order]
    match = np.where(held >= 0, cells.targets.row[held], -1) if len(crowd) else held

    matched = match >= 0
    on_region = matched & crowd[match] if len(crowd) else matched
    hit = matched & ~on_region
    table = (detections if isinstance(detections, pd.DataFrame) else detections.to_pandas()).iloc[kept].reset_index(drop=True)
    index = targets["target"].to_numpy()
    frame = table.assign(hit=hit, counted=~on_region, target=np.where(matched, index[match], -1) if len(index) else -1)
    if "query" not in frame:
        frame["query"] = -1
    found_by = np.full(len(targets), -1)
    found_by[match[hit]] = np.flatnonzero(hit)
    return Matches(
        frame[["image_id", "query", "category_id", "score", *BOX, "hit", "counted", "target"]],
        targets.assign(found_by=found_by)[~crowd].drop(columns="crowd").reset_index(drop=True),
        cells.image_ids,
        {category["id"]: category["name"] for category in ground_truth["categories"]},
    )
