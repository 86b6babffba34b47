"""Computes AP of one class on many resamples of the images at once.

A resample only changes how often each image counts. Precision is computed only at hits, where its envelope is attained, for all resamples
at once. The resamples are the last axis, so that sums run through memory in order.
"""

import numpy as np
from scipy import sparse

from workbench.analysis.detection.cells import ClassMatches

_RECALLS = np.linspace(0, 1, 101)  # COCO's recall thresholds
_BLOCK = 1 << 19  # numbers of an array processed at a time, so that they stay in the processor's cache


def by_image(counts: np.ndarray) -> np.ndarray:
    """Returns how often each image counts, ``[S, I]``, in the layout of ``class_aps``, ``[I, S]``."""
    return np.ascontiguousarray(np.asarray(counts, dtype=np.float64).T)


def class_aps(matches: ClassMatches, across: np.ndarray) -> np.ndarray:
    """Returns AP of one class at each of its IoU thresholds.

    Args:
        matches: matches of T thresholds, with detections of I images.
        across: ``[I, S]`` non-negative whole numbers, from ``by_image``.

    Returns:
        ``[T, S]``, 0 if no target is left.
    """
    samples = across.shape[1]
    values = np.zeros((len(matches.hit), samples))
    # detections that never count, or lie on images that are never drawn, change nothing; nor do those after the last hit
    useful = (matches.hit | matches.counted).any(axis=0) & np.any(across, axis=1)[matches.image]
    image, hit, counted = matches.image[useful], matches.hit[:, useful], matches.counted[:, useful]
    column = np.flatnonzero(hit.any(axis=0))
    if not len(column):
        return values
    # each row sums up the detections from the hit before it to its own hit; only these sums are needed
    hit_at = np.arange(column[-1] + 1)
    between = sparse.csr_array(
        (np.ones(len(hit_at)), (np.searchsorted(column, hit_at), image[: len(hit_at)])), shape=(len(column), len(across))
    )
    width = max(1, _BLOCK // len(column))
    for start in range(0, samples, width):
        part = across[:, start : start + width]
        targets = matches.targets @ part
        before, needed = np.cumsum(between @ part, axis=0), _needed(targets)
        for threshold in range(len(hit)):
            own = np.flatnonzero(hit[threshold, column])
            hidden = np.flatnonzero(~counted[threshold, : len(hit_at)])
            detections = before[own]
            if len(hidden):
                gone = np.concatenate([np.zeros((1, part.shape[1])), np.cumsum(part[image[hidden]], axis=0)])
                detections -= gone[np.searchsorted(hidden, column[own])]
            ap = _average_precision(part[image[column[own]]], detections, needed)
            values[threshold, start : start + width] = np.where(targets > 0, ap, 0)
    return values


def _average_precision(own: np.ndarray, detections: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Returns ``[S]``, the mean over COCO's recall thresholds of the greatest precision at that recall or a higher one.

    Args:
        own: ``[H, S]`` how often each hit counts, the best score first.
        detections: ``[H, S]`` number of detections that count up to each hit.
        needed: ``[S, R]`` number of hits that reaches each recall threshold.
    """
    hits, samples = own.shape
    if not hits:
        return np.zeros(samples)
    true = np.cumsum(own, axis=0)
    precision = np.zeros((hits + 1, samples))  # the last row: recall never reached
    np.divide(true, np.maximum(detections, 1), out=precision[:-1])
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # one entry for every time that a hit counts; the n-th entry is the hit with which their number becomes n
    unit = np.repeat(np.tile(np.arange(hits), samples), own.T.astype(np.intp).ravel())
    total = true[-1].astype(np.intp)
    place = (np.cumsum(total) - total)[:, None] + needed - 1
    reached = needed <= total[:, None]
    row = np.full(needed.shape, hits)
    row[reached] = unit[place[reached]]
    return precision[row, np.arange(samples)[:, None]].mean(axis=1)


def _needed(targets: np.ndarray) -> np.ndarray:
    """Returns ``[S, R]``, the fewest hits, at least one, whose share of ``targets [S]`` reaches each recall, as floats compare."""
    known, place = np.unique(np.maximum(targets, 1), return_inverse=True)
    number = np.ceil(known[:, None] * _RECALLS)
    number += number / known[:, None] < _RECALLS
    number -= (number - 1) / known[:, None] >= _RECALLS
    return np.maximum(number, 1).astype(np.intp)[place]
