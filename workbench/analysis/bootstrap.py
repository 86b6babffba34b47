"""Intervals of AP by resampling images: what another draw of the same number of images would give for these weights.

Matching of detections to targets happens within an image, so it is done once; a resample only changes how often each image counts.
AP of every resample is exact: it equals COCO's AP of the resampled data set, up to the order of equal scores within one image and class.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from workbench.analysis.ap import Detections, evaluate, light_ground_truth

LEVEL = 0.95
_RECALLS = np.linspace(0, 1, 101)  # COCO's recall thresholds


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval.

    Attributes:
        value: on all images.
        low: lower end; NaN where no resample defines the number.
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


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class, best score first, and targets of one class.

    Attributes:
        image: ``[D]`` position of the detection's image among the images in order of their ids.
        hit: ``[T, D]`` bool by IoU threshold: matched a target that counts.
        counted: ``[T, D]`` bool: not matched to a crowd.
        targets: ``[I]`` targets that count by image.
    """

    image: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    targets: np.ndarray


def bootstrap_ap(
    ground_truth: Mapping[str, Any], detections: Detections, samples: int = 300, seed: int = 0, max_detections: int = 100
) -> Interval:
    """Percentile interval of AP over resamples of the images.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``.
        samples: number of resamples.
        seed: of the draws.
        max_detections: kept per image and class.
    """
    counts = draws(len(ground_truth["images"]), samples, seed)
    return interval(weighted_ap(ground_truth, detections, with_all(counts), max_detections), counts.shape[1])


def paired_bootstrap(
    ground_truth: Mapping[str, Any],
    baseline: Detections,
    other: Detections,
    samples: int = 300,
    seed: int = 0,
    max_detections: int = 100,
) -> Interval:
    """Percentile interval of AP of ``other`` minus AP of ``baseline``, both on the same resampled images.

    It tells about these two sets of weights, not about the methods that made them.
    """
    counts = draws(len(ground_truth["images"]), samples, seed)
    before, after = (weighted_ap(ground_truth, found, with_all(counts), max_detections) for found in (baseline, other))
    return interval(after - before, counts.shape[1])


def weighted_ap(ground_truth: Mapping[str, Any], detections: Detections, counts: np.ndarray, max_detections: int = 100) -> np.ndarray:
    """AP when image i (by ascending id) counts ``counts[s, i]`` times.

    Args:
        ground_truth: COCO dict of I images.
        detections: as for ``coco_ap``.
        counts: ``[S, I]`` non-negative whole numbers.
        max_detections: kept per image and class.

    Returns:
        ``[S]`` AP 0..1, NaN where no target is left.
    """
    return mean_ap(class_matches(ground_truth, detections, max_detections), counts)


def mean_ap(matches: Iterable[ClassMatches], counts: np.ndarray) -> np.ndarray:
    """Mean over classes that have targets, and over IoU thresholds.

    Args:
        matches: of every class.
        counts: ``[S, I]`` how often image i counts.

    Returns:
        ``[S]`` AP 0..1, NaN where no target is left.
    """
    counts = np.asarray(counts, dtype=np.float64)
    total = np.zeros(len(counts))
    defined = np.zeros(len(counts))
    for own in matches:
        total += class_ap(own, counts)
        defined += counts @ own.targets > 0
    return np.divide(total, defined, out=np.full(len(counts), np.nan), where=defined > 0)


def class_ap(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    """``[S]`` AP of one class, the mean over its IoU thresholds; 0 where no target is left."""
    targets = counts @ matches.targets
    ap = np.mean([_average_precision(matches, threshold, counts, targets) for threshold in range(len(matches.hit))], axis=0)
    return np.where(targets > 0, ap, 0)


def draws(images: int, samples: int, seed: int) -> np.ndarray:
    """``[S, I]`` how often each resample draws each image; the same for every run that is compared."""
    if not images:
        return np.zeros((samples, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)


def with_all(counts: np.ndarray) -> np.ndarray:
    """``[S + 1, I]``: every image once, then the resamples."""
    return np.concatenate([np.ones((1, counts.shape[1])), counts])


def interval(values: np.ndarray, images: int) -> Interval:
    """Percentile interval of ``values [S + 1]``: the number on all images, then on every resample."""
    defined = values[1:][np.isfinite(values[1:])]
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail]) if defined.size else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high), images, len(values) - 1)


def class_matches(
    ground_truth: Mapping[str, Any],
    detections: Detections,
    max_detections: int = 100,
    area: str = "all",
    thresholds: Sequence[float] | None = None,
) -> Iterator[ClassMatches]:
    """Matches of every class that has targets or detections.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``.
        max_detections: kept per image and class.
        area: name in ``ap.AREAS``; only targets of that size count.
        thresholds: of the IoU; COCO's ten by default.
    """
    truth = light_ground_truth(ground_truth)
    position = {image: n for n, image in enumerate(sorted(image["id"] for image in truth["images"]))}
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in evaluate(truth, detections, "hotcoco", max_detections, (area,), thresholds).evalImgs:
        if entry is not None:
            found.setdefault(entry["category_id"], []).append(entry)
    for entries in found.values():
        entries.sort(key=lambda entry: position[entry["image_id"]])
        places = np.array([position[entry["image_id"]] for entry in entries])
        targets = np.zeros(len(position))
        targets[places] = [len(entry["gtIgnore"]) - sum(entry["gtIgnore"]) for entry in entries]
        image = np.repeat(places, [len(entry["dtScores"]) for entry in entries])
        # the order of the reference: by score, equal scores by image
        order = np.argsort(-np.concatenate([entry["dtScores"] for entry in entries]), kind="stable")
        hit, ignored = (
            np.concatenate([np.asarray(entry[name], bool).reshape(len(entry[name]), -1) for entry in entries], axis=1)[:, order]
            for name in ("dtMatched", "dtIgnore")
        )
        yield ClassMatches(image[order], hit & ~ignored, ~ignored, targets)


def _average_precision(matches: ClassMatches, threshold: int, counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """``[S]`` AP of one class at one IoU threshold; 0 where ``targets [S]`` is 0.

    Recall grows and the envelope of precision is attained at true positives only, so nothing is computed for other detections but how
    many of them come before each true positive.
    """
    hits = np.flatnonzero(matches.hit[threshold])
    if not len(hits):
        return np.zeros(len(counts))
    counted = np.flatnonzero(matches.counted[threshold])
    segment = np.searchsorted(hits, counted)
    counted, segment = counted[segment < len(hits)], segment[segment < len(hits)]
    shape = (counts.shape[1], len(hits))
    between = sparse.csr_array((np.ones(len(counted)), (matches.image[counted], segment)), shape=shape)
    detections = np.cumsum(counts @ between, axis=1)
    true = np.cumsum(counts[:, matches.image[hits]], axis=1)
    precision = np.divide(true, detections, out=np.zeros_like(true), where=detections > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / np.maximum(targets, 1)[:, None]
    found = np.stack([np.searchsorted(row, _RECALLS) for row in recall])
    precision = np.concatenate([precision, np.zeros((len(counts), 1))], axis=1)  # recall never reached
    return np.take_along_axis(precision, found, axis=1).mean(axis=1)
