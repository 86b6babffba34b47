"""Turns queries into detections, each with its best class only, because the query table holds no more."""

import numpy as np
import pandas as pd

from workbench.datasets.base import Dataset


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
