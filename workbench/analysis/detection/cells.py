"""Matches detections with targets as COCO does, for all images, classes and IoU thresholds at once.

A cell is an image and a class; within it detections take targets, the best score first. The n-th detections of all cells that overlap
any target take their turn in one operation on arrays, so that few turns settle all cells.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pycocotools.mask

from workbench.analysis.detection.ap import AREAS, Detections, detection_rows, light_ground_truth
from workbench.analysis.detection.mask_ap import mask_ground_truth
from workbench.datasets.object_masks import area_of
from workbench.overlap import share, shared_area
from workbench.store.detections import MASK

_coco: Any = pycocotools.mask  # its hints know one RLE where it takes lists of them

Overlap = Literal["box", "mask"]  # what IoU and sizes are measured on

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
NONE = -1


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class, best score first, and targets of one class.

    Attributes:
        image: ``[D]`` position of the detection's image among the images in order of their ids.
        hit: ``[T, D]`` bool by IoU threshold: True if it matched a target that counts.
        counted: ``[T, D]`` bool: True if it is not matched to a crowd.
        targets: ``[I]`` number of targets that count, by image.
    """

    image: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class CellDetections:
    """Detections by cell, best score first within each; one detection behind ``limit`` is kept."""

    cell: np.ndarray
    image: np.ndarray
    category: np.ndarray
    row: np.ndarray  # row among the given detections
    score: np.ndarray
    rank: np.ndarray  # rank in the cell
    box: np.ndarray  # [D, 4] x, y, width, height
    limit: int

    @classmethod
    def of(cls, rows: np.ndarray, image_ids: np.ndarray, category_ids: np.ndarray, limit: int) -> "CellDetections":
        image, category = np.searchsorted(image_ids, rows[:, 0]), np.searchsorted(category_ids, rows[:, 6])
        cell = image * len(category_ids) + category
        order = np.lexsort((-rows[:, 5], cell))
        rank = rank_in_run(cell[order])
        order, rank = order[rank <= limit], rank[rank <= limit]
        return cls(cell[order], image[order], category[order], order, rows[order, 5], rank, rows[order, 1:5], limit)


@dataclass(frozen=True)
class CellTargets:
    """Targets by cell, within each in the order of the file."""

    cell: np.ndarray
    image: np.ndarray
    category: np.ndarray
    row: np.ndarray  # row of the ground truth's annotations
    crowd: np.ndarray
    area: np.ndarray
    box: np.ndarray

    @classmethod
    def of(cls, truth: Mapping[str, Any], image_ids: np.ndarray, category_ids: np.ndarray) -> "CellTargets":
        annotations = truth["annotations"]
        image = np.searchsorted(image_ids, np.array([a["image_id"] for a in annotations], dtype=image_ids.dtype))
        category = np.searchsorted(category_ids, np.array([a["category_id"] for a in annotations], dtype=category_ids.dtype))
        crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
        area = np.array([a["area"] for a in annotations], dtype=np.float64)
        box = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
        cell = image * len(category_ids) + category
        order = np.argsort(cell, kind="stable")
        return cls(cell[order], image[order], category[order], order, crowd[order], area[order], box[order])


@dataclass(frozen=True)
class CellPairs:
    """Detections and targets of the same cell whose overlap reaches the lowest threshold, in order of both."""

    detection: np.ndarray
    target: np.ndarray
    iou: np.ndarray

    @classmethod
    def of(cls, found: CellDetections, targets: CellTargets, masks: "tuple[list[Any], list[Any]] | None" = None) -> "CellPairs":
        """Finds the pairs; ``masks`` are the RLEs of detections and of targets, if IoU is that of masks."""
        first = np.searchsorted(targets.cell, found.cell, "left")
        count = np.searchsorted(targets.cell, found.cell, "right") - first
        detection = np.repeat(np.arange(len(found.cell)), count)
        target = np.arange(len(detection)) + np.repeat(first - (np.cumsum(count) - count), count)
        if masks is None:
            iou = _iou(found.box[detection], targets.box[target], targets.crowd[target])
        else:
            iou = _mask_iou(found.cell, targets.cell, *masks, targets.crowd)
        near = iou >= THRESHOLDS[0]
        return cls(detection[near], target[near], iou[near])


class Cells:
    """A split and its detections, ready to be matched for any range of target sizes.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``.
        max_detections: number of detections kept per image and class.
        iou: whether IoU and sizes are those of boxes or of masks; for masks, as for ``coco_mask_ap``.
    """

    def __init__(self, ground_truth: Mapping[str, Any], detections: Detections, max_detections: int = 100, iou: Overlap = "box"):
        truth = light_ground_truth(ground_truth) if iou == "box" else mask_ground_truth(ground_truth)
        rows = detection_rows(truth, detections)
        self.image_ids = np.sort([image["id"] for image in truth["images"]])
        self.category_ids = np.sort([category["id"] for category in truth["categories"]])
        self.detections = CellDetections.of(rows, self.image_ids, self.category_ids, max_detections)
        self.targets = CellTargets.of(truth, self.image_ids, self.category_ids)
        if iou == "box":
            self.sizes = self.detections.box[:, 2] * self.detections.box[:, 3]
            self.pairs = CellPairs.of(self.detections, self.targets)
            return
        size = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
        counts: list[str] = np.asarray(detections[MASK.name]).tolist()
        found = [{"size": size[int(rows[row, 0])], "counts": counts[row]} for row in self.detections.row]
        wanted = [truth["annotations"][row]["segmentation"] for row in self.targets.row]
        self.sizes = np.array([area_of(mask["counts"], *mask["size"]) for mask in found], np.float64)
        self.pairs = CellPairs.of(self.detections, self.targets, (found, wanted))

    def held(self, ignored: np.ndarray) -> np.ndarray:
        """Returns ``[D, T]``, the target that each detection holds, -1 for none; ``ignored [G]`` bool as for ``greedy``."""
        held = greedy(self.pairs, self.detections, self.targets, ignored)
        there = held >= 0
        held[there] = self.pairs.target[held[there]]
        return held

    def classes(self, area: str = "all") -> Iterator[ClassMatches]:
        """Yields the matches of every class that has targets or detections, by category id.

        Args:
            area: name in ``ap.AREAS``; targets of other sizes are ignored, and so are detections of other sizes that match nothing.
        """
        return (own for _, own in self.by_category(area))

    def by_category(self, area: str = "all") -> Iterator[tuple[int, ClassMatches]]:
        """Yields the matches of ``classes``, each with its category id."""
        found, targets = self.detections, self.targets
        low, high = AREAS[area]
        ignored = targets.crowd | (targets.area < low) | (targets.area > high)
        held = self.held(ignored)
        size = self.sizes
        on_ignored = (held >= 0) & ignored[held] if len(ignored) else held >= 0
        hit = (held >= 0) & ~on_ignored
        counted = ~on_ignored & ((held >= 0) | ((size >= low) & (size <= high))[:, None])
        # the order of the reference implementation: by score, equal scores by image
        order = np.flatnonzero(found.rank < found.limit)
        order = order[np.lexsort((found.image[order], -found.score[order], found.category[order]))]
        ends = np.searchsorted(found.category[order], np.arange(len(self.category_ids) + 1))
        asked = np.zeros((len(self.category_ids), len(self.image_ids)))
        np.add.at(asked, (targets.category[~ignored], targets.image[~ignored]), 1)
        there = np.bincount(targets.category, minlength=len(self.category_ids)) > 0
        for number in np.flatnonzero(there | (np.diff(ends) > 0)):
            own = order[ends[number] : ends[number + 1]]
            yield int(self.category_ids[number]), ClassMatches(found.image[own], hit[own].T, counted[own].T, asked[number])


def greedy(pairs: CellPairs, found: CellDetections, targets: CellTargets, ignored: np.ndarray) -> np.ndarray:
    """Returns ``[D, T]``, the pair of each detection, -1 for none.

    A target that counts goes before an ignored one, then the higher IoU, then the later target. Many detections may hold one crowd.

    Args:
        pairs: pairs in the order of the detections.
        found: detections by cell, best score first.
        targets: targets of the pairs.
        ignored: ``[G]`` bool: targets that neither count nor are missed; crowds are among them.
    """
    match = np.full((len(found.cell), len(THRESHOLDS)), NONE, np.int32)  # int32 halves the memory of millions of detections
    taken = np.zeros((len(targets.cell), len(THRESHOLDS)), dtype=bool)
    detections, first = np.unique(pairs.detection, return_index=True)
    count = np.diff(np.append(first, len(pairs.detection)))
    turn = rank_in_run(found.cell[detections])
    for number in range(int(turn.max(initial=-1)) + 1):  # in every cell at once the n-th detection that overlaps a target
        chosen = np.flatnonzero(turn == number)
        size = count[chosen]
        start = np.cumsum(size) - size
        own = np.repeat(first[chosen] - start, size) + np.arange(size.sum())
        target, iou = pairs.target[own], pairs.iou[own]
        free = (iou[:, None] >= THRESHOLDS) & (targets.crowd[target][:, None] | ~taken[target])
        worth = np.where(free, np.where(ignored[target], iou - 2, iou)[:, None], -3.0)
        best = np.maximum.reduceat(worth, start, axis=0)
        last = np.where(free & (worth == np.repeat(best, size, axis=0)), own[:, None], NONE)
        pair = np.maximum.reduceat(last, start, axis=0)
        match[detections[chosen]] = pair
        row, threshold = np.nonzero(pair >= 0)
        taken[pairs.target[pair[row, threshold]], threshold] = True
    return match


def rank_in_run(groups: np.ndarray) -> np.ndarray:
    """Returns ``[N]``, the position within a run of equal values."""
    start = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])) if len(groups) else np.zeros(0, dtype=int)
    return np.arange(len(groups)) - np.repeat(start, np.diff(np.append(start, len(groups))))


def _iou(detection: np.ndarray, target: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Returns ``[P]`` IoU as the reference implementation computes it: for a crowd, intersection over the detection's area."""
    corners = [np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) for boxes in (detection, target)]
    shared = shared_area(*corners)
    own = detection[:, 2] * detection[:, 3]
    union = np.where(crowd, own, own + target[:, 2] * target[:, 3] - shared)
    return share(shared, union)


def _mask_iou(found_in: np.ndarray, wanted_in: np.ndarray, found: list[Any], wanted: list[Any], crowd: np.ndarray) -> np.ndarray:
    """Returns ``[P]`` IoU of the pairs of RLEs of the same cell, in order of detections, then of targets, as ``_iou`` does for boxes.

    Args:
        found_in: ``[D]`` ascending, cell of each detection.
        wanted_in: ``[G]`` ascending, cell of each target.
        found: ``[D]`` RLEs.
        wanted: ``[G]`` RLEs.
        crowd: ``[G]`` bool.
    """
    parts = [np.zeros(0)]
    for cell in np.intersect1d(found_in, wanted_in):
        first, last = np.searchsorted(found_in, [cell, cell + 1])
        begin, end = np.searchsorted(wanted_in, [cell, cell + 1])
        # one call for each cell, because pycocotools then reads each RLE once and passes over masks whose boxes are apart
        parts.append(_coco.iou(found[first:last], wanted[begin:end], crowd[begin:end].astype(np.uint8).tolist()).ravel())
    return np.concatenate(parts)
