"""AP of one class on many resamples of the images at once.

A resample only changes how often each image counts. Precision is computed at hits alone, where its envelope is attained; for all
resamples at once, with the resamples along the last axis, on which sums run through memory in order.
"""

import numpy as np

from workbench.analysis.cells import ClassMatches

_RECALLS = np.linspace(0, 1, 101)  # COCO's recall thresholds
_BLOCK = 1 << 19  # numbers of an array that are worked on at a time: what a processor keeps near it


def by_image(counts: np.ndarray) -> np.ndarray:
    """``[S, I]`` how often each image counts, as ``class_aps`` wants it: ``[I, S]``."""
    return np.ascontiguousarray(np.asarray(counts, dtype=np.float64).T)


def class_aps(matches: ClassMatches, across: np.ndarray) -> np.ndarray:
    """AP of one class at each of its IoU thresholds.

    Args:
        matches: T thresholds, detections of I images.
        across: ``[I, S]`` non-negative whole numbers, of ``by_image``.

    Returns:
        ``[T, S]``, 0 where no target is left.
    """
    samples = across.shape[1]
    values = np.zeros((len(matches.hit), samples))
    # what comes after the last hit, never counts, or lies on images that are never drawn changes nothing
    useful = (matches.hit | matches.counted).any(axis=0) & np.any(across, axis=1)[matches.image]
    hits = matches.hit.any(axis=0) & useful
    if not hits.any():
        return values
    useful[np.flatnonzero(hits)[-1] + 1 :] = False
    image, hit, counted = matches.image[useful], matches.hit[:, useful], matches.counted[:, useful]
    width = max(1, _BLOCK // len(image))
    for start in range(0, samples, width):
        part = across[:, start : start + width]
        targets = matches.targets @ part
        weight = part[image]
        before, needed = np.cumsum(weight, axis=0), _needed(targets)
        for threshold in range(len(hit)):
            ap = _average_precision(hit[threshold], counted[threshold], weight, before, needed)
            values[threshold, start : start + width] = np.where(targets > 0, ap, 0)
    return values


def _average_precision(
    hit: np.ndarray, counted: np.ndarray, weight: np.ndarray, before: np.ndarray, needed: np.ndarray
) -> np.ndarray:
    """``[S]`` the mean over COCO's recall thresholds of the greatest precision at that recall or a higher one.

    Args:
        hit: ``[D]`` bool.
        counted: ``[D]`` bool.
        weight: ``[D, S]`` how often each detection counts.
        before: ``[D, S]`` its sum up to each detection.
        needed: ``[S, R]`` hits that reach each recall threshold.
    """
    hits = np.flatnonzero(hit)
    if not len(hits):
        return np.zeros(weight.shape[1])
    own, detections = weight[hits], before[hits]
    uncounted = np.flatnonzero(~counted)
    if len(uncounted):
        hidden = np.concatenate([np.zeros((1, weight.shape[1])), np.cumsum(weight[uncounted], axis=0)])
        detections -= hidden[np.searchsorted(uncounted, hits)]
    true = np.cumsum(own, axis=0)
    precision = np.zeros((len(hits) + 1, weight.shape[1]))  # the last: recall never reached
    np.divide(true, np.maximum(detections, 1), out=precision[:-1])
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # one entry for every time that a hit counts: the n-th is the hit that makes n
    unit = np.repeat(np.tile(np.arange(len(hits)), weight.shape[1]), own.T.astype(np.intp).ravel())
    total = true[-1].astype(np.intp)
    place = (np.cumsum(total) - total)[:, None] + needed - 1
    reached = needed <= total[:, None]
    row = np.full(needed.shape, len(hits))
    row[reached] = unit[place[reached]]
    return precision[row, np.arange(weight.shape[1])[:, None]].mean(axis=1)


def _needed(targets: np.ndarray) -> np.ndarray:
    """``[S, R]`` fewest hits, at least one, whose share of ``targets [S]`` is no less than each recall threshold, as floats compare."""
    known, place = np.unique(np.maximum(targets, 1), return_inverse=True)
    number = np.ceil(known[:, None] * _RECALLS)
    number += number / known[:, None] < _RECALLS
    number -= (number - 1) / known[:, None] >= _RECALLS
    return np.maximum(number, 1).astype(np.intp)[place]
