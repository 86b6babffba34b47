"""What COCO's matching becomes when one detection is taken away, without matching again.

Detections take targets greedily, the best score first, within an image, a class and an IoU threshold. When a detection that held a
target goes, the target falls to the first later detection that would have taken it, which frees the target that this one held, and so
on, until a detection that held nothing takes one or nobody wants what is free. So taking a detection away removes one entry from the
list that AP is made of, adds the first detection behind the cut to ``max_detections``, and turns at most one other from a miss to a hit.
Who is next depends on the freed target alone, so all chains are followed at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.analysis.ap import Detections, detection_rows, light_ground_truth
from workbench.errors import DataError

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU
_NONE = -1


@dataclass(frozen=True)
class ClassEntries:
    """Detections of one class in the order of AP: best score first, equal scores by image. T IoU thresholds, D detections, I images.

    Attributes:
        category_id: of the class.
        image: ``[D]`` position of the image among the images in order of their ids.
        query: ``[D]`` slot.
        kept: ``[D]`` bool: within the cut; the others are the first behind it, one at most of an image.
        hit: ``[T, D]`` bool: holds a target that counts. Of those behind the cut: would, if no other detection went.
        ignored: ``[T, D]`` bool: holds a crowd, so it counts neither for nor against.
        heir: ``[T, D]`` position of the detection that becomes a hit when this one goes, -1 for none.
        entrant: ``[D]`` position of the detection that the cut lets in when this one goes, -1 for none.
        targets: ``[I]`` targets that count.
    """

    category_id: int
    image: np.ndarray
    query: np.ndarray
    kept: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    heir: np.ndarray
    entrant: np.ndarray
    targets: np.ndarray


def class_entries(ground_truth: Mapping[str, Any], detections: Detections, max_detections: int = 100) -> list[ClassEntries]:
    """Matches every class once and follows what the removal of each detection would change.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``, with the column ``query``; before the cut to ``max_detections``.
        max_detections: kept per image and class.

    Returns:
        The classes that have targets, by ascending category id.

    Raises:
        DataError: a query has two detections of one class in one image.
    """
    truth = light_ground_truth(ground_truth)
    rows = detection_rows(truth, detections)
    image_ids = np.sort([image["id"] for image in truth["images"]])
    category_ids = np.sort([category["id"] for category in truth["categories"]])
    found = _Detections.of(rows, np.asarray(detections["query"]), image_ids, category_ids, max_detections)
    targets = _Targets.of(truth, image_ids, category_ids)
    pairs = _Pairs.of(found, targets)
    match = _greedy(pairs, found, targets)
    heir = _heirs(pairs, match, targets, len(found.cell))
    held = np.where(match >= 0, pairs.target[match], _NONE) if len(pairs.target) else match
    ignored = (held >= 0) & targets.crowd[held] if len(targets.cell) else held >= 0
    hit = (held >= 0) & ~ignored
    return [
        _of_class(found, targets, number, int(category), hit, ignored, heir, len(image_ids))
        for number, category in enumerate(category_ids)
        if (~targets.crowd & (targets.category == number)).any()
    ]


@dataclass(frozen=True)
class _Detections:
    """Detections by cell (image and class), best score first in each, cut one behind ``max_detections``."""

    cell: np.ndarray
    image: np.ndarray
    category: np.ndarray
    query: np.ndarray
    score: np.ndarray
    rank: np.ndarray  # in the cell
    box: np.ndarray  # [D, 4] x, y, width, height
    limit: int

    @classmethod
    def of(cls, rows: np.ndarray, query: np.ndarray, image_ids: np.ndarray, category_ids: np.ndarray, limit: int) -> "_Detections":
        image, category = np.searchsorted(image_ids, rows[:, 0]), np.searchsorted(category_ids, rows[:, 6])
        cell = image * len(category_ids) + category
        pairs = np.stack([cell, query], axis=1)
        if len(np.unique(pairs, axis=0)) < len(pairs):
            raise DataError("a query has two detections of one class in one image; the value of a slot needs one at most. "
                            "Evaluate the run again to write its detections anew.")
        order = np.lexsort((-rows[:, 5], cell))
        rank = _rank(cell[order])
        order, rank = order[rank <= limit], rank[rank <= limit]
        return cls(cell[order], image[order], category[order], query[order], rows[order, 5], rank, rows[order, 1:5], limit)


@dataclass(frozen=True)
class _Targets:
    """Targets by cell, crowds last in each, otherwise in the order of the file."""

    cell: np.ndarray
    image: np.ndarray
    category: np.ndarray
    crowd: np.ndarray
    box: np.ndarray

    @classmethod
    def of(cls, truth: Mapping[str, Any], image_ids: np.ndarray, category_ids: np.ndarray) -> "_Targets":
        annotations = truth["annotations"]
        image = np.searchsorted(image_ids, np.array([a["image_id"] for a in annotations], dtype=image_ids.dtype))
        category = np.searchsorted(category_ids, np.array([a["category_id"] for a in annotations], dtype=category_ids.dtype))
        crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
        box = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        cell = image * len(category_ids) + category
        order = np.lexsort((crowd, cell))
        return cls(cell[order], image[order], category[order], crowd[order], box[order])


@dataclass(frozen=True)
class _Pairs:
    """Detections and targets of the same cell that overlap by the lowest threshold, in order of both."""

    detection: np.ndarray
    target: np.ndarray
    iou: np.ndarray

    @classmethod
    def of(cls, found: _Detections, targets: _Targets) -> "_Pairs":
        first = np.searchsorted(targets.cell, found.cell, "left")
        count = np.searchsorted(targets.cell, found.cell, "right") - first
        detection = np.repeat(np.arange(len(found.cell)), count)
        target = np.arange(len(detection)) + np.repeat(first - (np.cumsum(count) - count), count)
        iou = _iou(found.box[detection], targets.box[target], targets.crowd[target])
        near = iou >= THRESHOLDS[0]
        return cls(detection[near], target[near], iou[near])


def _greedy(pairs: _Pairs, found: _Detections, targets: _Targets) -> np.ndarray:
    """``[D, T]`` pair of each detection, -1 for none.

    A target that counts goes before a crowd, then the higher IoU, then the later target; a crowd may be held by many.
    """
    match = np.full((len(found.cell), len(THRESHOLDS)), _NONE)
    taken = np.zeros((len(targets.cell), len(THRESHOLDS)), dtype=bool)
    detections, first = np.unique(pairs.detection, return_index=True)
    count = np.diff(np.append(first, len(pairs.detection)))
    turn = _rank(found.cell[detections])
    for number in range(int(turn.max(initial=-1)) + 1):  # the n-th detection with a chance of every cell at once
        chosen = np.flatnonzero(turn == number)
        size = count[chosen]
        start = np.cumsum(size) - size
        own = np.repeat(first[chosen] - start, size) + np.arange(size.sum())
        target, iou = pairs.target[own], pairs.iou[own]
        crowd = targets.crowd[target]
        free = (iou[:, None] >= THRESHOLDS) & (crowd[:, None] | ~taken[target])
        worth = np.where(free, np.where(crowd, iou - 2, iou)[:, None], -3.0)
        best = np.maximum.reduceat(worth, start, axis=0)
        last = np.where(free & (worth == np.repeat(best, size, axis=0)), own[:, None], _NONE)
        pair = np.maximum.reduceat(last, start, axis=0)
        match[detections[chosen]] = pair
        row, threshold = np.nonzero(pair >= 0)
        held = pairs.target[pair[row, threshold]]
        taken[held, threshold] = True
    return match


def _heirs(pairs: _Pairs, match: np.ndarray, targets: _Targets, detections: int) -> np.ndarray:
    """``[D, T]`` detection that becomes a hit when this one goes, -1 for none."""
    thresholds = np.arange(len(THRESHOLDS))
    if not len(pairs.target):
        return np.full((detections, len(THRESHOLDS)), _NONE)
    current = match[pairs.detection]  # [P, T]
    rival = pairs.target[current]
    has_none = (current < 0) | targets.crowd[rival]
    iou, target = pairs.iou[:, None], pairs.target[:, None]
    prefers = has_none | (iou > pairs.iou[current]) | ((iou == pairs.iou[current]) & (target > rival))
    counts = ~targets.crowd[pairs.target]
    wants = (iou >= THRESHOLDS) & prefers & counts[:, None]

    nobody = detections
    order = np.argsort(pairs.target, kind="stable")
    wanted, first = np.unique(pairs.target[order], return_index=True)
    after = np.full((len(targets.cell), len(THRESHOLDS)), nobody)
    after[wanted] = np.minimum.reduceat(np.where(wants, pairs.detection[:, None], nobody)[order], first, axis=0)

    held = np.where(match >= 0, pairs.target[match], _NONE)
    held = np.append(np.where((held >= 0) & targets.crowd[held], _NONE, held), np.full((1, len(THRESHOLDS)), _NONE), axis=0)
    heir = np.where(held[:-1] >= 0, after[held[:-1], thresholds], nobody)
    while True:
        freed = held[heir, thresholds]  # what the heir held before; a detection that held nothing ends the chain
        if not (freed >= 0).any():
            return np.where(heir == nobody, _NONE, heir)
        heir = np.where(freed >= 0, after[freed, thresholds], heir)


def _of_class(
    found: _Detections,
    targets: _Targets,
    number: int,
    category_id: int,
    hit: np.ndarray,
    ignored: np.ndarray,
    heir: np.ndarray,
    images: int,
) -> ClassEntries:
    own = np.flatnonzero(found.category == number)
    own = own[np.lexsort((found.image[own], -found.score[own]))]  # of equal scores in an image the earlier stays first
    place = np.full(len(found.cell) + 1, _NONE)  # the last is what -1 reads
    place[own] = np.arange(len(own))
    behind = own[found.rank[own] == found.limit]
    entrant = np.full(images, _NONE)
    entrant[found.image[behind]] = place[behind]
    kept = found.rank[own] < found.limit
    counted = (targets.category == number) & ~targets.crowd
    return ClassEntries(
        category_id, found.image[own], found.query[own], kept, hit[own].T, ignored[own].T, place[heir[own]].T,
        np.where(kept, entrant[found.image[own]], _NONE), np.bincount(targets.image[counted], minlength=images),
    )  # fmt: skip


def _rank(groups: np.ndarray) -> np.ndarray:
    """``[N]`` position within a run of equal values."""
    start = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])) if len(groups) else np.zeros(0, dtype=int)
    return np.arange(len(groups)) - np.repeat(start, np.diff(np.append(start, len(groups))))


def _iou(detection: np.ndarray, target: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """``[P]`` as the reference computes it: for a crowd, intersection over the detection's area."""
    low = np.maximum(detection[:, :2], target[:, :2])
    high = np.minimum(detection[:, :2] + detection[:, 2:], target[:, :2] + target[:, 2:])
    width, height = (high - low).T
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    own = detection[:, 2] * detection[:, 3]
    union = np.where(crowd, own, own + target[:, 2] * target[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
