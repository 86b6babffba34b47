"""Detections against targets at IoU 0.5, one row each: what every answer about single errors starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.ap import Detections, detection_rows, light_ground_truth
from workbench.analysis.targets import annotation_frame

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
    images = np.sort([image["id"] for image in truth["images"]])
    rows = detection_rows(truth, detections)
    kept = _best(rows, max_detections)
    rows = rows[kept]
    targets = annotation_frame(ground_truth)
    crowd = targets["crowd"].to_numpy()

    match = np.full(len(rows), -1)  # rows of `targets`
    order, there = _by_image(images, rows[:, 0], -rows[:, 5]), _by_image(images, targets["image_id"], np.zeros(len(targets)))
    regions = np.array([a["bbox"] for a in truth["annotations"]], float).reshape(-1, 4)
    category = targets["category_id"].to_numpy()
    for found, own in zip(order, there, strict=True):
        if len(found) and len(own):
            overlap = _overlap(rows[found, 1:5], regions[own], crowd[own])
            able = (overlap >= IOU) & (rows[found, 6][:, None] == category[own])
            chosen = _greedy(np.where(able, overlap, 0), crowd[own])
            match[found] = np.where(chosen < 0, -1, own[chosen])

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
        images,
        {category["id"]: category["name"] for category in truth["categories"]},
    )


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of all pairs of xyxy boxes: ``[N, 4]``, ``[M, 4]`` to ``[N, M]``; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=-1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=-1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _best(rows: np.ndarray, most: int) -> np.ndarray:
    """Indices of the detections that are among the ``most`` best-scored of their image and class."""
    order = np.lexsort((-rows[:, 5], rows[:, 6], rows[:, 0]))
    groups = rows[order][:, [0, 6]]
    first = np.r_[True, (groups[1:] != groups[:-1]).any(axis=1)][:len(order)]
    start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    return np.sort(order[np.arange(len(order)) - start < most])


def _by_image(images: np.ndarray, of: Any, rank: np.ndarray) -> list[np.ndarray]:
    """For each image the indices of what belongs to it, by ``rank``."""
    place = np.searchsorted(images, np.asarray(of))
    order = np.lexsort((rank, place))
    return np.split(order, np.searchsorted(place[order], np.arange(1, len(images))))


def _overlap(detections: np.ndarray, targets: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """``[D, G]`` IoU of xywh boxes, with a crowd the share of the detection's area; in the reference's arithmetic, for equal rounding."""
    low = np.maximum(detections[:, None, :2], targets[None, :, :2])
    high = np.minimum((detections[:, :2] + detections[:, 2:])[:, None], (targets[:, :2] + targets[:, 2:])[None])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    own, other = detections[:, 2] * detections[:, 3], targets[:, 2] * targets[:, 3]
    whole = np.where(crowd, own[:, None], own[:, None] + other - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _greedy(overlap: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """``[D]`` target of each detection, the best score first: the free one it overlaps most, else such a crowd; -1 = none.

    Args:
        overlap: ``[D, G]``, 0 where they cannot match.
        crowd: ``[G]`` bool: may be taken by many.
    """
    match = np.full(len(overlap), -1)
    free = ~crowd
    for row in np.flatnonzero(overlap.any(axis=1)):
        for able in (np.where(free, overlap[row], 0), np.where(crowd, overlap[row], 0)):
            if able.any():
                # of equal overlaps the reference takes the last
                match[row] = len(able) - 1 - able[::-1].argmax()
                free[match[row]] = False
                break
    return match
