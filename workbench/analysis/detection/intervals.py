"""Computes the twelve COCO numbers, each with its interval from resampling the images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.analysis.detection.ap import AREAS, Detections
from workbench.analysis.detection.bootstrap import Interval, draws, interval, mean_aps, with_all
from workbench.analysis.detection.cells import Cells, ClassMatches, Overlap

_SINGLE = {"ap50": 0, "ap75": 5}  # positions in the grid 0.50:0.05:0.95
_FEW = {"ar1": 1, "ar10": 10}


def coco_intervals(
    ground_truth: Mapping[str, Any],
    detections: Detections,
    samples: int = 300,
    seed: int = 0,
    max_detections: int = 100,
    iou: Overlap = "box",
) -> dict[str, Interval]:
    """Returns percentile intervals over resamples of the images.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``.
        samples: number of resamples.
        seed: seed of the draws.
        max_detections: number of detections kept per image and class.
        iou: whether the numbers are those of boxes or of masks.

    Returns:
        Intervals by the names of the numbers in ``APResult``.
    """
    images = len(ground_truth["images"])
    values = coco_values(ground_truth, detections, with_all(draws(images, samples, seed)), max_detections, iou)
    return {name: interval(value, images) for name, value in values.items()}


def coco_values(
    ground_truth: Mapping[str, Any], detections: Detections, counts: np.ndarray, max_detections: int = 100, iou: Overlap = "box"
) -> dict[str, np.ndarray]:
    """Returns the twelve numbers, each ``[S]``, when image i (by ascending id) counts ``counts[s, i]`` times; NaN without targets."""
    values: dict[str, np.ndarray] = {}
    cells = Cells(ground_truth, detections, max_detections, iou)
    for area in AREAS:
        matches = list(cells.classes(area))
        mean, single = mean_aps(matches, counts)
        if area == "all":
            values["ap"] = mean
            for name, place in _SINGLE.items():
                values[name] = single[place] if matches else mean
            for name, most in _FEW.items():
                values[name] = mean_recall(matches, counts, most)
            values["ar100"] = mean_recall(matches, counts, max_detections)
        else:
            values[f"ap_{area}"] = mean
            values[f"ar_{area}"] = mean_recall(matches, counts, max_detections)
    return values


def mean_recall(matches: Sequence[ClassMatches], counts: np.ndarray, most: int) -> np.ndarray:
    """Returns ``[S]``, the share of targets found, as a mean over classes with targets and over IoU thresholds; NaN without targets.

    Args:
        matches: matches of every class.
        counts: ``[S, I]`` how often image i counts.
        most: number of best-scored detections kept per image and class.
    """
    counts = np.asarray(counts, dtype=float)
    total, defined = np.zeros(len(counts)), np.zeros(len(counts))
    for own in matches:
        kept = _rank_in_image(own.image) < most
        hits = np.bincount(own.image[kept], own.hit[:, kept].mean(axis=0), len(own.targets))
        targets = counts @ own.targets
        total += np.divide(counts @ hits, targets, out=np.zeros(len(counts)), where=targets > 0)
        defined += targets > 0
    return np.divide(total, defined, out=np.full(len(counts), np.nan), where=defined > 0)


def _rank_in_image(image: np.ndarray) -> np.ndarray:
    """Returns ``[D]``, how many detections of the same image come before each."""
    order = np.argsort(image, kind="stable")
    grouped = image[order]
    starts = np.searchsorted(grouped, grouped)
    rank = np.empty(len(image), int)
    rank[order] = np.arange(len(image)) - starts
    return rank
