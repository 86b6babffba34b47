"""Computes what each image contributes to AP50: AP50 of all images minus AP50 without this one, its targets and its detections."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.cells import Cells, ClassMatches
from workbench.analysis.detection.weighted import class_aps

_AT_ONCE = 1 << 20  # entries of a table of counts held in memory


def image_contributions(ground_truth: Mapping[str, Any], detections: Detections, max_detections: int = 100) -> pd.DataFrame:
    """Returns AP50 with all images minus AP50 without each; positive for an image on which the model does better than on the rest.

    It is exact: a class without targets in the remaining images is no longer part of the mean. As for error types, the IoU is 0.5.

    Args:
        ground_truth: COCO dict.
        detections: as for ``coco_ap``.
        max_detections: number of detections kept per image and class.

    Returns:
        One row per image by ascending id: ``image_id``, ``contribution`` (0..1, NaN if one of the two is undefined).
    """
    cells = Cells(ground_truth, detections, max_detections)
    images = cells.image_ids
    total = np.zeros(len(images))
    defined = np.zeros(len(images))
    whole, classes = 0.0, 0
    for every in cells.classes():
        own = ClassMatches(every.image, every.hit[:1], every.counted[:1], every.targets)
        if not own.targets.any():
            continue
        ap = float(class_aps(own, np.ones((len(images), 1)))[0, 0])
        whole, classes = whole + ap, classes + 1
        # images without detections or targets of the class do not change its AP
        there = np.union1d(own.image, np.flatnonzero(own.targets)).astype(np.int64)
        total, defined = total + ap, defined + 1
        for some in np.array_split(there, min(len(there), 1 + len(there) * len(images) // _AT_ONCE)):
            across = np.ones((len(images), len(some)))
            across[some, np.arange(len(some))] = 0
            total[some] += class_aps(own, across)[0] - ap
            defined[some] -= own.targets @ across == 0
    without = np.divide(total, defined, out=np.full(len(images), np.nan), where=defined > 0)
    return pd.DataFrame({"image_id": images, "contribution": (whole / classes if classes else np.nan) - without})
