"""Makes a frame of the targets of a split, with their class and size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.detection.ap import AREAS

_SIZES = [name for name in AREAS if name != "all"]
_EDGES = [AREAS[name][0] for name in _SIZES[1:]]  # COCO's bounds in square pixels


def target_frame(ground_truth: Mapping[str, Any]) -> pd.DataFrame:
    """Returns the targets that can be matched, one row each, by image and target.

    Args:
        ground_truth: COCO dict; an annotation's ``target`` is its index in file order, by default its place within its image.

    Returns:
        ``image_id``, ``target``, ``label`` (index of the category in the dict, as in the query table), ``category_id``, ``area``
        (square pixels), ``size`` (small, medium, large by COCO's bounds of 32^2 and 96^2), ``x1 y1 x2 y2`` in pixels. Crowd and ignore
        regions are left out.
    """
    labels = {category["id"]: label for label, category in enumerate(ground_truth["categories"])}
    frame = annotation_frame(ground_truth)
    frame = frame[~frame["crowd"]].drop(columns="crowd")
    frame.insert(2, "label", frame["category_id"].map(labels).astype("int64"))
    size = np.searchsorted(_EDGES, frame["area"].to_numpy(), side="right")
    frame["size"] = pd.Categorical(np.array(_SIZES)[size], _SIZES, ordered=True)
    return frame.sort_values(["image_id", "target"], ignore_index=True)


def annotation_frame(ground_truth: Mapping[str, Any]) -> pd.DataFrame:
    """Returns every annotation in file order, including crowd and ignore regions.

    Args:
        ground_truth: as for ``target_frame``.

    Returns:
        ``image_id``, ``target``, ``category_id``, ``x1 y1 x2 y2``, ``area`` (the file's own if it has one), ``crowd``.
    """
    annotations = ground_truth["annotations"]
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    frame = pd.DataFrame(
        {
            "image_id": np.array([a["image_id"] for a in annotations], np.int64),
            "category_id": np.array([a["category_id"] for a in annotations], np.int64),
            **{name: boxes[:, k] for k, name in enumerate(("x1", "y1", "x2", "y2"))},
            "area": np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations], np.float64),
            "crowd": np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
        }
    )
    place = frame.groupby("image_id").cumcount()
    frame.insert(1, "target", np.array([a.get("target", p) for a, p in zip(annotations, place, strict=True)], np.int64))
    return frame
