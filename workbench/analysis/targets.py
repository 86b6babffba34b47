"""The targets of a split as a frame, with their class and size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.ap import AREAS

_SIZES = [name for name in AREAS if name != "all"]
_EDGES = [AREAS[name][0] for name in _SIZES[1:]]  # square pixels; COCO's


def target_frame(ground_truth: Mapping[str, Any]) -> pd.DataFrame:
    """Targets that may be matched, one row each, by image and target.

    Args:
        ground_truth: COCO dict; an annotation's ``target`` is its index in file order, by default its place among its image's.

    Returns:
        ``image_id``, ``target``, ``label`` (place of the category in the dict, as in the query table), ``category_id``, ``area``
        (square pixels), ``size`` (small, medium, large by COCO's bounds of 32^2 and 96^2), ``x1 y1 x2 y2`` in pixels. Crowd and ignore
        regions are left out.
    """
    labels = {category["id"]: label for label, category in enumerate(ground_truth["categories"])}
    seen: dict[int, int] = {}
    rows: list[tuple[Any, ...]] = []
    for annotation in ground_truth["annotations"]:
        image = annotation["image_id"]
        target = annotation.get("target", seen.get(image, 0))
        seen[image] = seen.get(image, 0) + 1
        if not annotation.get("iscrowd", 0):
            x, y, width, height = annotation["bbox"]
            category = annotation["category_id"]
            rows.append((image, target, labels[category], category, annotation.get("area", width * height), x, y, x + width, y + height))
    frame = pd.DataFrame(rows, columns=["image_id", "target", "label", "category_id", "area", "x1", "y1", "x2", "y2"])
    size = np.searchsorted(_EDGES, frame["area"].to_numpy(dtype=np.float64), side="right")
    frame["size"] = pd.Categorical(np.array(_SIZES)[size], _SIZES, ordered=True)
    whole = ["image_id", "target", "label", "category_id"]
    return frame.astype(dict.fromkeys(whole, "int64")).sort_values(["image_id", "target"], ignore_index=True)
