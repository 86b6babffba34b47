"""Random matchings with scores and boxes, and the targets they are of."""

from typing import Any

import numpy as np
import pandas as pd

from tests.analysis.query_examples import random_queries


def random_answers(seed: int, ties: bool = False, **sizes: Any) -> pd.DataFrame:
    """``random_queries`` with what gain, predictors and slots read; ``ties`` makes equal scores common."""
    queries = random_queries(seed, **sizes).reset_index(drop=True)
    rng = np.random.default_rng(seed)
    count = len(queries)
    score = rng.random(count)
    boxes = {name: rng.uniform(0.1, 0.9, count).astype(np.float32) for name in ("cx", "cy", "w", "h")}
    iou = np.where(queries["match"] >= 0, rng.random(count), 0)
    label = rng.integers(0, 3, count)
    values = score.round(1) if ties else score
    return queries.assign(score=values.astype(np.float32), match_iou=iou.astype(np.float32), label=label, **boxes)


def random_truth(seed: int, images: int = 4, targets: int = 8) -> dict[str, Any]:
    """A COCO dict of the images of ``random_queries``: eight targets each, of three classes and all sizes."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(images):
        for target in range(targets):
            width, height = rng.uniform(10, 150, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image,
                    "category_id": int(rng.choice([4, 9, 2])),
                    "bbox": [1.0, 2.0, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "target": target,
                }
            )
    return {
        "images": [{"id": 100 + image} for image in range(images)], "annotations": annotations,
        "categories": [{"id": category, "name": f"class {category}"} for category in (4, 9, 2)],
    }  # fmt: skip
