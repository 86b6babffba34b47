"""Random detections of query slots, for the tests of their value."""

from typing import Any

import numpy as np
import pandas as pd

from tests.analysis.coco_examples import random_coco


def random_slots(seed: int, images: int = 8, slots: int = 12, copies: int = 2) -> tuple[dict[str, Any], pd.DataFrame]:
    """``random_coco`` with ``copies`` more detections near each, so that targets change hands, and a slot for each detection.

    No slot has two detections of one class in one image. Equal scores are common.
    """
    truth, table = random_coco(seed, images)
    rng = np.random.default_rng(seed)
    corners = ["x1", "y1", "x2", "y2"]
    for _ in range(copies):
        near = table[corners].to_numpy() + rng.normal(0, 4, (len(table), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        table = pd.concat([table, table.assign(score=rng.random(len(table)).round(1), **dict(zip(corners, near.T, strict=True)))])
    table = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    number = table.groupby(["image_id", "category_id"]).cumcount().to_numpy()
    orders = np.array([rng.permutation(max(slots, number.max() + 1)) for _ in range(images * 100)])
    table["query"] = orders[(table["image_id"] // 10) * 100 + table["category_id"], number]
    return truth, table
