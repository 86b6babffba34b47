"""Computes 2D average precision as KITTI defines it: 40 recall points; easy, moderate and hard targets.

It counts as the benchmark's development kit does (Geiger et al., "Are we ready for Autonomous Driving?", CVPR 2012; 40 points since
Simonelli et al., ICCV 2019). Targets that are too low, hidden or cut off for a difficulty, and targets of a neighbouring class, may be
found, but are neither required nor wrong. Detections on DontCare regions and detections that are too low are not counted. Precision is
taken at scores picked so that recall rises by about 1/40, the first at the best score. So a split with fewer than 41 targets cannot
reach 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.bootstrap import Interval, draws, interval, with_all
from workbench.analysis.detection.matches import BOX
from workbench.datasets.base import Dataset, Record
from workbench.datasets.kitti import ATTRIBUTES
from workbench.overlap import pairwise_iou, share, shared_area

Difficulty = Literal["easy", "moderate", "hard"]
RECALL_POINTS = 40
MIN_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
NEIGHBOUR = {"Car": "Van", "Pedestrian": "Person_sitting"}


@dataclass(frozen=True)
class _Limits:
    """The limits of a difficulty: least ``height`` in pixels, and most occlusion and truncation."""

    height: int
    occlusion: int
    truncation: float


LIMITS: dict[Difficulty, _Limits] = {"easy": _Limits(40, 0, 0.15), "moderate": _Limits(25, 1, 0.3), "hard": _Limits(25, 2, 0.5)}


@dataclass(frozen=True)
class _Image:
    """Targets, regions and detections of one image.

    Attributes:
        targets: ``[G, 4]`` boxes, without regions.
        names: ``[G]`` classes of the targets.
        hidden: ``[G]`` occlusion.
        cut: ``[G]`` truncation.
        regions: ``[R, 4]`` DontCare regions.
        boxes: ``[D, 4]`` boxes of the detections.
        seen: ``[D]`` classes of the detections.
        scores: ``[D]`` scores of the detections.
    """

    targets: np.ndarray
    names: np.ndarray
    hidden: np.ndarray
    cut: np.ndarray
    regions: np.ndarray
    boxes: np.ndarray
    seen: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class KittiMatches:
    """All that AP of one class and difficulty needs, image by image.

    Attributes:
        targets: ``[I]`` number of required targets.
        found: ``[V]`` scores of the detections that find one if all are kept, best first.
        found_image: ``[V]`` position of their image.
        score: ``[E]`` scores at which a count changes as the threshold falls, best first.
        image: ``[E]`` position of the image.
        true: ``[E]`` change of the true positives.
        false: ``[E]`` change of the false positives.
    """

    targets: np.ndarray
    found: np.ndarray
    found_image: np.ndarray
    score: np.ndarray
    image: np.ndarray
    true: np.ndarray
    false: np.ndarray


def is_kitti(dataset: Dataset) -> bool:
    """Returns True if the dataset's boxes hold what KITTI's AP needs and it has at least one of KITTI's three classes."""
    known = all(set(ATTRIBUTES) <= set(record.attributes) for record in dataset.records)
    return known and bool(set(MIN_OVERLAP) & set(dataset.classes))


def kitti_ap(dataset: Dataset, detections: Detections, samples: int = 0, seed: int = 0) -> pd.DataFrame:
    """Returns AP of each of KITTI's three classes that the dataset has, at each difficulty.

    Args:
        dataset: dataset for which ``is_kitti`` holds. If its classes leave out a neighbour (Van, Person_sitting), detections on it are
            wrong.
        detections: as for ``coco_ap``; all of them count.
        samples: number of resamples of the images for the interval; 0 gives none (NaN).
        seed: seed of the resamples.

    Returns:
        One row per class and difficulty: ``class``, ``difficulty``, ``ap`` (0..1, NaN without targets), ``low``, ``high``, ``targets``
        (required ones), ``images``.
    """
    images = _images(dataset, detections)
    counts = with_all(draws(len(images), samples, seed))
    rows: list[dict[str, Any]] = []
    for name in MIN_OVERLAP:
        if name not in dataset.classes:
            continue
        for difficulty in LIMITS:
            matches = kitti_matches(images, name, difficulty)
            found: Interval = interval(average_precision(matches, counts), len(images))
            rows.append(
                {
                    "class": name,
                    "difficulty": difficulty,
                    "ap": found.value,
                    "low": found.low,
                    "high": found.high,
                    "targets": int(matches.targets.sum()),
                    "images": len(images),
                }
            )
    return pd.DataFrame(rows)


def average_precision(matches: KittiMatches, counts: np.ndarray) -> np.ndarray:
    """Returns ``[S]`` AP when image i (by ascending id) counts ``counts[s, i]`` times; NaN if no target is left."""
    result = np.full(len(counts), np.nan)
    for place, times in enumerate(np.asarray(counts, dtype=np.int64)):
        targets = int(times @ matches.targets)
        if targets:
            found = np.repeat(matches.found, times[matches.found_image])
            thresholds = found[_picked(len(found), targets)]
            # everything down to a score, including that score
            upto = np.searchsorted(-matches.score, -thresholds, side="right")
            weight = times[matches.image]
            true, false = (np.concatenate([[0], np.cumsum(weight * change)])[upto] for change in (matches.true, matches.false))
            precision = np.zeros(RECALL_POINTS + 1)
            np.divide(true, true + false, out=precision[: len(thresholds)], where=true > 0)
            result[place] = np.maximum.accumulate(precision[::-1])[::-1][1:].mean()
    return result


def _picked(found: int, targets: int) -> list[int]:
    """Returns the ranks among ``found`` scores at which precision is taken: those with recall nearest to each multiple of 1/40, once."""
    ranks: list[int] = []
    recall = 0.0
    for rank in range(found):
        after, now = (rank + 2) / targets, (rank + 1) / targets
        if rank < found - 1 and after - recall < recall - now:
            continue
        ranks.append(rank)
        recall += 1 / RECALL_POINTS
    return ranks


def kitti_matches(images: list[_Image], name: str, difficulty: Difficulty) -> KittiMatches:
    """Returns the matches of one class at one difficulty."""
    targets = np.zeros(len(images))
    found: list[tuple[float, int]] = []
    events: list[tuple[float, int, int, int]] = []
    for place, image in enumerate(images):
        scene = _scene(image, name, LIMITS[difficulty])
        targets[place] = scene.asked.sum()
        found += [(score, place) for score in _found(scene)]
        events += [(score, place, true, false) for score, true, false in _changes(scene)]
    found.sort(key=lambda row: -row[0])
    events.sort(key=lambda row: -row[0])
    scores, places = np.array(found, float).reshape(-1, 2).T
    score, image, true, false = np.array(events, float).reshape(-1, 4).T
    return KittiMatches(targets, scores, places.astype(int), score, image.astype(int), true.astype(int), false.astype(int))


@dataclass(frozen=True)
class _Scene:
    """One image as seen for one class and difficulty.

    Attributes:
        asked: ``[G]`` bool over targets of the class or its neighbour: True if required; the others may be found without counting.
        near: ``[G, D]`` overlap of target and detection, 0 if too small to match.
        scores: ``[D]`` scores of the detections of the class, and of all detections that are too low.
        low: ``[D]`` bool: True if too low to count, whatever the class.
        covered: ``[D]`` bool: True if on a DontCare region.
    """

    asked: np.ndarray
    near: np.ndarray
    scores: np.ndarray
    low: np.ndarray
    covered: np.ndarray


def _scene(image: _Image, name: str, limits: _Limits) -> _Scene:
    own = image.names == name
    height = image.targets[:, 3] - image.targets[:, 1]
    fit = (height > limits.height) & (image.hidden <= limits.occlusion) & (image.cut <= limits.truncation)
    kept = own | (image.names == NEIGHBOUR.get(name))
    # the kit truncates the height of a detection to whole pixels
    low = np.abs(image.boxes[:, 3] - image.boxes[:, 1]).astype(int) < limits.height
    counts = low | (image.seen == name)
    boxes = image.boxes[counts]
    overlap = pairwise_iou(image.targets[kept], boxes)
    near = np.where(overlap > MIN_OVERLAP[name], overlap, 0)
    covered = np.any(_covered(boxes, image.regions) > MIN_OVERLAP[name], axis=1)
    return _Scene((own & fit)[kept], near, image.scores[counts], low[counts], np.asarray(covered))


def _found(scene: _Scene) -> Iterator[float]:
    """Yields scores of the detections that find required targets: each target in turn takes the best-scored free one."""
    free = np.ones(len(scene.scores), bool)
    for asked, near in zip(scene.asked, scene.near > 0, strict=True):
        able = np.flatnonzero(near & free)
        if len(able):
            chosen = able[scene.scores[able].argmax()]
            free[chosen] = False
            if asked and not scene.low[chosen]:
                yield float(scene.scores[chosen])


def _changes(scene: _Scene) -> Iterator[tuple[float, int, int]]:
    """Yields scores, and by how much true and false positives change when the threshold falls to each.

    Each target in turn takes the free detection that overlaps it most, and one that is too low only if there is no other. This is
    repeated for every threshold, but only detections near a target can make a difference.
    """
    near = (scene.near > 0).any(axis=0)
    for score in scene.scores[~near & ~scene.low & ~scene.covered]:
        yield float(score), 0, 1
    scores, low, covered = scene.scores[near], scene.low[near], scene.covered[near]
    if not len(scores):
        return
    thresholds = np.unique(scores)[::-1]
    active = scores >= thresholds[:, None]  # [T, D]
    free = active.copy()
    true = np.zeros(len(thresholds), int)
    every = np.arange(len(thresholds))
    for asked, overlap in zip(scene.asked, scene.near[:, near], strict=True):
        able = free & (overlap > 0)
        high = able & ~low
        chosen = np.where(high.any(1), np.where(high, overlap, 0).argmax(1), able.argmax(1))
        taken = able.any(1)
        free[every[taken], chosen[taken]] = False
        true += asked & high.any(1)
    false = (free & ~low & ~covered).sum(1)
    for score, more_true, more_false in zip(thresholds, np.diff(true, prepend=0), np.diff(false, prepend=0), strict=True):
        if more_true or more_false:
            yield float(score), int(more_true), int(more_false)


def _covered(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Returns ``[D, R]``, the share of each box that lies in each region."""
    shared = shared_area(boxes[:, None], regions[None])
    own = (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None]
    return share(shared, np.broadcast_to(own, shared.shape))


def _images(dataset: Dataset, detections: Detections) -> list[_Image]:
    """Returns every image with its detections, by ascending id."""
    table = detections if isinstance(detections, pd.DataFrame) else detections.to_pandas()
    name_of = dict(zip(dataset.category_ids, dataset.classes, strict=True))
    table = table.assign(name=table["category_id"].map(name_of))
    found = dict(iter(table.groupby("image_id")))
    nothing = table.iloc[:0]
    records = sorted(dataset.records, key=lambda record: record.image_id)
    return [_image(record, dataset.classes, found.get(record.image_id, nothing)) for record in records]


def _image(record: Record, classes: tuple[str, ...], found: pd.DataFrame) -> _Image:
    targets = ~record.ignore
    return _Image(
        record.boxes[targets],
        np.array(classes, dtype=object)[record.labels[targets]],
        record.attributes["occlusion"][targets],
        record.attributes["truncation"][targets],
        record.boxes[record.ignore],
        found[BOX].to_numpy(float),
        found["name"].to_numpy(dtype=object),
        found["score"].to_numpy(float),
    )
