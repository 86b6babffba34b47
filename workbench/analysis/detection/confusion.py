"""Counts which classes are taken for each other: detections against targets of any class at IoU 0.5."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.cells import rank_in_run
from workbench.analysis.detection.matches import BOX, IOU, match_detections
from workbench.analysis.detection.ratios import percentiles
from workbench.overlap import iou as overlap_iou

BACKGROUND = -1  # in place of a category id
THRESHOLD = 0.3
TARGET_BOX = [f"target_{name}" for name in BOX]


def confusion_pairs(
    ground_truth: Mapping[str, Any], detections: Detections, threshold: float = THRESHOLD, max_detections: int = 100
) -> pd.DataFrame:
    """Pairs detections with targets of any class, the best score first, each with the free target it overlaps most.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``, optionally with ``query``. Detections on crowd or ignore regions, which AP does not count, are
            left out.
        threshold: least score.
        max_detections: number of detections kept per image and class.

    Returns:
        One row per pair, per detection without a target and per target without a detection: ``image_id``, ``target`` (-1 = none),
        ``truth`` and ``predicted`` (category ids, ``BACKGROUND`` if there is none), ``query`` (-1 = none), ``score``, ``iou`` (NaN
        without a pair), ``x1 y1 x2 y2`` of the detection and ``target_x1`` to ``target_y2`` of the target in pixels (NaN without one).
    """
    matches = match_detections(ground_truth, detections, max_detections)
    found, own = matches.detections, matches.targets
    found = found[found["counted"] & (found["score"] >= threshold)].sort_values("score", ascending=False, kind="stable")
    image = np.searchsorted(matches.images, found["image_id"])
    order = np.argsort(image, kind="stable")
    found, image = found.iloc[order], image[order]
    owner = np.searchsorted(matches.images, own["image_id"])
    own, owner = own.iloc[np.argsort(owner, kind="stable")], np.sort(owner)
    place, iou = _taken(found[BOX].to_numpy(float), image, own[BOX].to_numpy(float), owner)
    paired, free = place >= 0, np.ones(len(own), bool)
    free[place[paired]] = False
    target, truth = own["target"].to_numpy(), own["category_id"].to_numpy()
    of_detections = pd.DataFrame({
        "image_id": found["image_id"].to_numpy(), "target": np.full(len(found), -1), "truth": np.full(len(found), BACKGROUND),
        "predicted": found["category_id"].to_numpy(), "query": found["query"].to_numpy(), "score": found["score"].to_numpy(), "iou": iou,
    })  # fmt: skip
    of_detections.loc[paired, "target"], of_detections.loc[paired, "truth"] = target[place[paired]], truth[place[paired]]
    missed = pd.DataFrame({
        "image_id": own["image_id"].to_numpy()[free], "target": target[free], "truth": truth[free], "predicted": BACKGROUND, "query": -1,
        "score": np.nan, "iou": np.nan,
    })  # fmt: skip
    of_detections[BOX] = found[BOX].to_numpy(float)
    of_detections[TARGET_BOX] = np.nan
    of_detections.loc[paired, TARGET_BOX] = own[BOX].to_numpy(float)[place[paired]]
    missed[BOX] = np.nan
    missed[TARGET_BOX] = own[BOX].to_numpy(float)[free]
    return pd.concat([of_detections, missed], ignore_index=True).sort_values("image_id", kind="stable", ignore_index=True)


def _taken(boxes: np.ndarray, image: np.ndarray, targets: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which target each detection takes, the best score of an image first: the free one it overlaps most.

    Args:
        boxes: ``[D, 4]`` xyxy, by image, within each the best score first.
        image: ``[D]`` image of each box.
        targets: ``[G, 4]`` xyxy, by image.
        owner: ``[G]`` image of each target.

    Returns:
        ``[D]`` index of the target, -1 = none, and ``[D]`` their IoU, NaN without one.
    """
    place, overlap = np.full(len(boxes), -1), np.full(len(boxes), np.nan)
    free = np.ones(len(targets), bool)
    turn = rank_in_run(image)
    for number in range(int(turn.max(initial=-1)) + 1):  # the n-th detection of every image at once
        rows = np.flatnonzero(turn == number)
        first, end = (np.searchsorted(owner, image[rows], side) for side in ("left", "right"))
        rows, first, count = rows[end > first], first[end > first], (end - first)[end > first]
        if not len(rows):
            continue
        start = np.cumsum(count) - count
        own = np.arange(count.sum()) + np.repeat(first - start, count)
        iou = overlap_iou(np.repeat(boxes[rows], count, axis=0), targets[own])
        iou = np.where(free[own], iou, 0)
        best = np.maximum.reduceat(iou, start)
        # of equal overlaps the first wins
        chosen = np.minimum.reduceat(np.where(iou == np.repeat(best, count), own, len(targets)), start)
        near = best >= IOU
        place[rows[near]], overlap[rows[near]] = chosen[near], best[near]
        free[chosen[near]] = False
    return place, overlap


def confusion_matrix(pairs: pd.DataFrame, classes: Mapping[int, str]) -> pd.DataFrame:
    """Returns counts of pairs: a row per class of the target, a column per class of the detection, both ending with ``BACKGROUND``.

    Args:
        pairs: frame of ``confusion_pairs``.
        classes: name by category id, in the order of rows and columns.
    """
    order = [*classes, BACKGROUND]
    counts = pairs.groupby(["truth", "predicted"]).size().unstack(fill_value=0)
    return counts.reindex(index=order, columns=order, fill_value=0).astype(int)


def compare_confusion(
    baseline: pd.DataFrame, other: pd.DataFrame, classes: Mapping[int, str], images: Sequence[int], samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns how many pairs more than the baseline the other run has in each cell of the matrix, with intervals over resampled images.

    Args:
        baseline: frame of ``confusion_pairs``.
        other: frame of another run on the same images.
        classes: name by category id.
        images: ids of all images of the split, which are resampled.
        samples: number of resamples.
        seed: seed of the draws.

    Returns:
        One row per cell that holds a pair in one of the runs, in the order of the matrix: ``truth``, ``predicted``, ``baseline`` and
        ``other`` (pairs), ``difference`` with ``low`` and ``high``.
    """
    order = pd.Index([*classes, BACKGROUND])
    pairs = pd.concat([baseline.assign(sign=-1), other.assign(sign=1)], ignore_index=True)
    place = order.get_indexer(pd.Index(pairs["truth"])) * len(order) + order.get_indexer(pd.Index(pairs["predicted"]))
    cells, group = np.unique(place, return_inverse=True)
    sign, image = pairs["sign"].to_numpy(), pairs["image_id"].to_numpy()
    own = sparse.csr_array((sign, (group, np.searchsorted(np.sort(images), image))), shape=(len(cells), len(images)))
    low, high = percentiles((own @ draws(len(images), samples, seed).T).astype(float))
    before, after = (np.bincount(group[sign == side], minlength=len(cells)) for side in (-1, 1))
    return pd.DataFrame(
        {
            "truth": order.to_numpy()[cells // len(order)],
            "predicted": order.to_numpy()[cells % len(order)],
            "baseline": before,
            "other": after,
            "difference": after - before,
            "low": low,
            "high": high,
        }
    )
