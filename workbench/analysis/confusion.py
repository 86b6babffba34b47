"""Which class is taken for which: detections against targets of any class at IoU 0.5."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.ap import Detections
from workbench.analysis.matches import BOX, IOU, match_detections, pairwise_iou

BACKGROUND = -1  # in the place of a category id
THRESHOLD = 0.3


def confusion_pairs(
    ground_truth: Mapping[str, Any], detections: Detections, threshold: float = THRESHOLD, max_detections: int = 100
) -> pd.DataFrame:
    """Pairs detections with targets whatever their classes, the best score first, each with the free target it overlaps most.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``, perhaps with ``query``. Those that AP does not count, on crowd or ignore regions, are left out.
        threshold: least score.
        max_detections: kept per image and class.

    Returns:
        One row per pair, per detection without a target and per target without a detection: ``image_id``, ``target`` (-1 = none),
        ``truth`` and ``predicted`` (category ids, ``BACKGROUND`` where there is none), ``query`` (-1 = none), ``score``, ``iou``
        (NaN without a pair).
    """
    matches = match_detections(ground_truth, detections, max_detections)
    found = matches.detections
    found = found[found["counted"] & (found["score"] >= threshold)].sort_values("score", ascending=False, kind="stable")
    by_image = dict(iter(found.groupby("image_id")))
    targets_of = dict(iter(matches.targets.groupby("image_id")))
    rows: list[tuple[Any, ...]] = []
    for image in matches.images:
        own, targets = by_image.get(image, found.iloc[:0]), targets_of.get(image, matches.targets.iloc[:0])
        overlap = pairwise_iou(own[BOX].to_numpy(float), targets[BOX].to_numpy(float))
        index, truth = targets["target"].to_numpy(), targets["category_id"].to_numpy()
        free = np.ones(len(targets), bool)
        for row, (query, predicted, score) in enumerate(zip(own["query"], own["category_id"], own["score"], strict=True)):
            able = np.where(free, overlap[row], 0)
            place = int(able.argmax()) if len(able) else -1
            if place >= 0 and able[place] >= IOU:
                free[place] = False
                rows.append((image, index[place], truth[place], predicted, query, score, able[place]))
            else:
                rows.append((image, -1, BACKGROUND, predicted, query, score, np.nan))
        rows += [(image, index[place], truth[place], BACKGROUND, -1, np.nan, np.nan) for place in np.flatnonzero(free)]
    return pd.DataFrame(rows, columns=["image_id", "target", "truth", "predicted", "query", "score", "iou"])


def confusion_matrix(pairs: pd.DataFrame, classes: Mapping[int, str]) -> pd.DataFrame:
    """Counts of pairs: a row per class of the target, a column per class of the detection, both ending with ``BACKGROUND``.

    Args:
        pairs: of ``confusion_pairs``.
        classes: category id -> name, in the order of rows and columns.
    """
    order = [*classes, BACKGROUND]
    counts = pairs.groupby(["truth", "predicted"]).size().unstack(fill_value=0)
    return counts.reindex(index=order, columns=order, fill_value=0).astype(int)
