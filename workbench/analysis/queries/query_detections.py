"""Turns candidates into detections, each with its best class only, because the query table holds no more."""

import numpy as np
import pandas as pd

from workbench.analysis.stability.same_box import BOX
from workbench.datasets.base import Dataset
from workbench.overlap import corners_of, pairwise_iou

DUPLICATE_IOU = 0.5  # two detections of one class that overlap as much are of one object


def query_detections(rows: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Returns one detection per query, in the data's categories and pixels, with boxes clipped to the image.

    Args:
        rows: rows of the query table, of one model, layer and step.
        dataset: dataset of their split.

    Returns:
        ``image_id``, ``query``, ``category_id``, ``score``, ``x1 y1 x2 y2``, in the order of ``rows`` and with a new index.
    """
    sizes = pd.DataFrame([(record.image_id, record.width, record.height) for record in dataset.records],
                         columns=["image_id", "width", "height"])  # fmt: skip
    frame = rows[["image_id", "query", "label", "score", "cx", "cy", "w", "h"]].merge(sizes, on="image_id", how="left")
    return pd.DataFrame(
        {
            "image_id": frame["image_id"],
            "query": frame["query"],
            "category_id": np.asarray(dataset.category_ids)[frame["label"].to_numpy()],
            "score": frame["score"],
            "x1": (frame["cx"] - frame["w"] / 2).clip(0, 1) * frame["width"],
            "y1": (frame["cy"] - frame["h"] / 2).clip(0, 1) * frame["height"],
            "x2": (frame["cx"] + frame["w"] / 2).clip(0, 1) * frame["width"],
            "y2": (frame["cy"] + frame["h"] / 2).clip(0, 1) * frame["height"],
        }
    )


def without_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of which no better one of the same image and class has an IoU above 0.5, in their order.

    A detector with a many-to-one assignment sees every object with several candidates, and suppresses all but the best before it reports
    them (non-maximum suppression). The query table holds its candidates as they are, so without this nearly all of them were duplicates.

    Args:
        rows: rows of the query table, of one model, layer and step.
    """
    boxes, score = corners_of(rows[BOX].to_numpy(np.float64)), rows["score"].to_numpy(np.float64)
    kept = np.zeros(len(rows), dtype=bool)
    # of equal scores the lower candidate comes first
    order = np.lexsort((rows["query"].to_numpy(), -score))
    group = rows.groupby(["image_id", "label"]).ngroup().to_numpy()
    order = order[np.argsort(group[order], kind="stable")]
    for own in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        overlaps = pairwise_iou(boxes[own], boxes[own]) > DUPLICATE_IOU
        better = np.zeros(len(own), dtype=bool)  # whether a kept better one overlaps it
        for place in range(len(own)):
            if not better[place]:
                kept[own[place]] = True
                better |= overlaps[place]
    return rows[kept]
