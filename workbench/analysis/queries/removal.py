"""Computes how COCO's matching changes when one detection is removed, without matching again.

Detections take targets greedily, the best score first, within an image, a class and an IoU threshold. When a detection that held a
target is removed, the target falls to the first later detection that would have taken it. This frees the target which that detection held,
and so on, until a detection that held nothing takes one, or no detection wants what is free. So removing a detection removes one entry from
the list that AP is computed from, adds the first detection behind the cut to ``max_detections``, and turns at most one other detection from
a miss to a hit. Which detection is next depends only on the freed target, so all chains are followed at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.cells import NONE, THRESHOLDS, CellDetections, CellPairs, Cells, CellTargets, greedy
from workbench.errors import DataError


@dataclass(frozen=True)
class ClassEntries:
    """Detections of one class in the order of AP: best score first, equal scores by image. T IoU thresholds, D detections, I images.

    Attributes:
        category_id: id of the class.
        image: ``[D]`` position of the image among the images in order of their ids.
        query: ``[D]`` slot.
        kept: ``[D]`` bool: True within the cut; the others are the first behind it, at most one per image.
        hit: ``[T, D]`` bool: True if it holds a target that counts; behind the cut, if it would with all other detections in place.
        ignored: ``[T, D]`` bool: True if it holds a crowd, so that it counts neither for nor against.
        heir: ``[T, D]`` position of the detection that becomes a hit when this one is removed, -1 for none.
        entrant: ``[D]`` position of the detection that enters the cut when this one is removed, -1 for none.
        targets: ``[I]`` number of targets that count.
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
        max_detections: number of detections kept per image and class.

    Returns:
        The classes that have targets, by ascending category id.

    Raises:
        DataError: a query has two detections of one class in one image.
    """
    cells = Cells(ground_truth, detections, max_detections)
    query = np.asarray(detections["query"])
    found, targets, pairs = cells.detections, cells.targets, cells.pairs
    _one_a_query(cells, query, detections)
    match = greedy(pairs, found, targets, targets.crowd)
    heir = _heirs(pairs, match, targets, len(found.cell))
    held = np.where(match >= 0, pairs.target[match], NONE) if len(pairs.target) else match
    ignored = (held >= 0) & targets.crowd[held] if len(targets.cell) else held >= 0
    hit = (held >= 0) & ~ignored
    return [
        _of_class(found, query[found.row], targets, number, int(category), hit, ignored, heir, len(cells.image_ids))
        for number, category in enumerate(cells.category_ids)
        if (~targets.crowd & (targets.category == number)).any()
    ]


def _one_a_query(cells: Cells, query: np.ndarray, detections: Detections) -> None:
    """Raises DataError if a query has two detections of one class in one image."""
    names = [np.asarray(detections[name]) for name in ("image_id", "category_id")]
    cell = np.searchsorted(cells.image_ids, names[0]) * len(cells.category_ids) + np.searchsorted(cells.category_ids, names[1])
    order = np.lexsort((query, cell))
    if ((np.diff(cell[order]) == 0) & (np.diff(query[order]) == 0)).any():
        raise DataError(
            "a query has two detections of one class in one image, but the value of a slot needs one at most. "
            "Evaluate the run again to write its detections anew."
        )


def _heirs(pairs: CellPairs, match: np.ndarray, targets: CellTargets, detections: int) -> np.ndarray:
    """Returns ``[D, T]``, the detection that becomes a hit when this one is removed, -1 for none."""
    thresholds = np.arange(len(THRESHOLDS))
    if not len(pairs.target):
        return np.full((detections, len(THRESHOLDS)), NONE)
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

    held = np.where(match >= 0, pairs.target[match], NONE)
    held = np.append(np.where((held >= 0) & targets.crowd[held], NONE, held), np.full((1, len(THRESHOLDS)), NONE), axis=0)
    heir = np.where(held[:-1] >= 0, after[held[:-1], thresholds], nobody)
    while True:
        freed = held[heir, thresholds]  # what the heir held before; a detection that held nothing ends the chain
        if not (freed >= 0).any():
            return np.where(heir == nobody, NONE, heir)
        heir = np.where(freed >= 0, after[freed, thresholds], heir)


def _of_class(
    found: CellDetections,
    query: np.ndarray,
    targets: CellTargets,
    number: int,
    category_id: int,
    hit: np.ndarray,
    ignored: np.ndarray,
    heir: np.ndarray,
    images: int,
) -> ClassEntries:
    own = np.flatnonzero(found.category == number)
    own = own[np.lexsort((found.image[own], -found.score[own]))]  # of equal scores in an image the earlier stays first
    place = np.full(len(found.cell) + 1, NONE)  # index -1 reads the last entry
    place[own] = np.arange(len(own))
    behind = own[found.rank[own] == found.limit]
    entrant = np.full(images, NONE)
    entrant[found.image[behind]] = place[behind]
    kept = found.rank[own] < found.limit
    counted = (targets.category == number) & ~targets.crowd
    return ClassEntries(
        category_id, found.image[own], query[own], kept, hit[own].T, ignored[own].T, place[heir[own]].T,
        np.where(kept, entrant[found.image[own]], NONE), np.bincount(targets.image[counted], minlength=images),
    )  # fmt: skip
