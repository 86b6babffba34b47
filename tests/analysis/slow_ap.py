"""AP of resampled images the slow way: hotcoco matches, and every resample's recall thresholds are searched one after the other."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from workbench.analysis.detection.ap import Detections, evaluate, light_ground_truth
from workbench.analysis.detection.cells import ClassMatches

RECALLS = np.linspace(0, 1, 101)


def slow_matches(ground_truth: Mapping[str, Any], detections: Detections, area: str = "all", most: int = 100) -> Iterator[ClassMatches]:
    """Matches of every class by category id, read from the evaluator's list of images."""
    truth = light_ground_truth(ground_truth)
    position = {image: n for n, image in enumerate(sorted(image["id"] for image in truth["images"]))}
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in evaluate(truth, detections, "hotcoco", most, (area,)).evalImgs:
        if entry is not None:
            found.setdefault(entry["category_id"], []).append(entry)
    for _, entries in sorted(found.items()):
        entries.sort(key=lambda entry: position[entry["image_id"]])
        places = np.array([position[entry["image_id"]] for entry in entries])
        targets = np.zeros(len(position))
        targets[places] = [len(entry["gtIgnore"]) - sum(entry["gtIgnore"]) for entry in entries]
        image = np.repeat(places, [len(entry["dtScores"]) for entry in entries])
        order = np.argsort(-np.concatenate([entry["dtScores"] for entry in entries]), kind="stable")
        hit, ignored = (
            np.concatenate([np.asarray(entry[name], bool).reshape(len(entry[name]), -1) for entry in entries], axis=1)[:, order]
            for name in ("dtMatched", "dtIgnore")
        )
        yield ClassMatches(image[order], hit & ~ignored, ~ignored, targets)


def slow_class_aps(matches: ClassMatches, counts: np.ndarray) -> np.ndarray:
    """``[T, S]`` AP of one class; 0 where no target is left."""
    targets = counts @ matches.targets
    return np.where(targets > 0, [_average_precision(matches, t, counts, targets) for t in range(len(matches.hit))], 0)


def slow_mean_ap(matches: Iterator[ClassMatches], counts: np.ndarray) -> np.ndarray:
    """``[S]``."""
    total, defined = np.zeros(len(counts)), np.zeros(len(counts))
    for own in matches:
        total += slow_class_aps(own, counts).mean(axis=0)
        defined += counts @ own.targets > 0
    return np.divide(total, defined, out=np.full(len(counts), np.nan), where=defined > 0)


def _average_precision(matches: ClassMatches, threshold: int, counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    hits = np.flatnonzero(matches.hit[threshold])
    if not len(hits):
        return np.zeros(len(counts))
    counted = np.flatnonzero(matches.counted[threshold])
    segment = np.searchsorted(hits, counted)
    counted, segment = counted[segment < len(hits)], segment[segment < len(hits)]
    between = sparse.csr_array((np.ones(len(counted)), (matches.image[counted], segment)), shape=(counts.shape[1], len(hits)))
    detections = np.cumsum(counts @ between, axis=1)
    true = np.cumsum(counts[:, matches.image[hits]], axis=1)
    precision = np.divide(true, detections, out=np.zeros_like(true), where=detections > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true / np.maximum(targets, 1)[:, None]
    found = np.stack([np.searchsorted(row, RECALLS) for row in recall])
    precision = np.concatenate([precision, np.zeros((len(counts), 1))], axis=1)
    return np.take_along_axis(precision, found, axis=1).mean(axis=1)
