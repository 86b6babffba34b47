"""Computes intervals of AP by resampling images: what another draw of the same number of images would give for these weights.

Detections are matched to targets within an image, so matching is done once; a resample only changes how often each image counts.
AP of every resample is exact: it equals COCO's AP of the resampled data set, up to the order of equal scores within one image and class.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.cells import Cells, ClassMatches, Overlap
from workbench.analysis.detection.weighted import by_image, class_aps

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval.

    Attributes:
        value: number on all images.
        low: lower end; NaN if no resample defines the number.
        high: upper end.
        images: number of images resampled.
        samples: number of resamples.
        level: share of the resamples inside.
    """

    value: float
    low: float
    high: float
    images: int
    samples: int
    level: float = LEVEL


def bootstrap_ap(
    ground_truth: Mapping[str, Any], detections: Detections, samples: int = 300, seed: int = 0, max_detections: int = 100
) -> Interval:
    """Returns the percentile interval of AP over resamples of the images.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``.
        samples: number of resamples.
        seed: seed of the draws.
        max_detections: number of detections kept per image and class.
    """
    counts = draws(len(ground_truth["images"]), samples, seed)
    return interval(weighted_ap(ground_truth, detections, with_all(counts), max_detections), counts.shape[1])


def weighted_ap(
    ground_truth: Mapping[str, Any], detections: Detections, counts: np.ndarray, max_detections: int = 100, iou: Overlap = "box"
) -> np.ndarray:
    """Returns AP when image i (by ascending id) counts ``counts[s, i]`` times.

    Args:
        ground_truth: COCO dict of I images.
        detections: as for ``coco_ap``.
        counts: ``[S, I]`` non-negative whole numbers.
        max_detections: number of detections kept per image and class.
        iou: whether it is AP of boxes or of masks.

    Returns:
        ``[S]`` AP 0..1, NaN if no target is left.
    """
    return mean_ap(Cells(ground_truth, detections, max_detections, iou).classes(), counts)


def mean_ap(matches: Iterable[ClassMatches], counts: np.ndarray) -> np.ndarray:
    """Returns the mean AP over classes that have targets, and over IoU thresholds.

    Args:
        matches: matches of every class.
        counts: ``[S, I]`` how often image i counts.

    Returns:
        ``[S]`` AP 0..1, NaN if no target is left.
    """
    return mean_aps(matches, counts)[0]


def mean_aps(matches: Iterable[ClassMatches], counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``mean_ap``, and ``[T, S]`` the mean over classes at each IoU threshold."""
    across = by_image(counts)
    mean, single, defined = np.zeros(len(counts)), np.zeros((1, len(counts))), np.zeros(len(counts))
    for own in matches:
        aps = class_aps(own, across)
        mean, single = mean + aps.mean(axis=0), single + aps
        defined += own.targets @ across > 0
    nothing = np.full(single.shape, np.nan)
    return (np.divide(mean, defined, out=nothing[0].copy(), where=defined > 0),
            np.divide(single, defined, out=nothing, where=defined > 0))  # fmt: skip


def draws(images: int, samples: int, seed: int) -> np.ndarray:
    """Returns ``[S, I]``, how often each resample draws each image; the same for every run that is compared."""
    if not images:
        return np.zeros((samples, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)


def with_all(counts: np.ndarray) -> np.ndarray:
    """Returns ``[S + 1, I]``: every image once, then the resamples."""
    return np.concatenate([np.ones((1, counts.shape[1])), counts])


def interval(values: np.ndarray, images: int) -> Interval:
    """Returns the percentile interval of ``values [S + 1]``, which hold the number on all images, then on every resample."""
    defined = values[1:][np.isfinite(values[1:])]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail]) if defined.size else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high), images, len(values) - 1)
