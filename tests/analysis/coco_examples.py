"""Random COCO ground truth and detections for the tests of AP."""

from typing import Any

import numpy as np
import pandas as pd


def random_coco(
    seed: int, images: int = 12, classes: int = 3, ties: bool = True, crowds: bool = True
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Targets of all sizes with crowds and empty images, and detections that hit, miss, repeat and tie."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    rows: list[tuple[float, ...]] = []
    category_ids = [3, 7, 44, 90][:classes]
    for image in range(images):
        for _ in range(int(rng.integers(0, 7))):
            width, height = rng.choice([12.0, 50.0, 140.0], 2) * rng.uniform(0.7, 1.3, 2)
            x, y = rng.uniform(0, 300, 2)
            category = int(rng.choice(category_ids))
            crowd = bool(crowds and rng.random() < 0.12)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image * 10 + 5,
                    "category_id": category,
                    "iscrowd": int(crowd),
                    "bbox": [x, y, width, height],
                    "area": width * height * rng.uniform(0.6, 1.0),
                }
            )
            for _ in range(int(rng.integers(0, 3)) + 3 * crowd):
                dx, dy, dw, dh = rng.normal(0, 0.1, 4)
                seen = category if rng.random() < 0.85 else int(rng.choice(category_ids))
                rows.append((image * 10 + 5, seen, x + dx * width, y + dy * height, width * np.exp(dw), height * np.exp(dh)))
        for _ in range(int(rng.integers(0, 4))):
            rows.append((image * 10 + 5, int(rng.choice(category_ids)), *rng.uniform(0, 300, 2), *rng.uniform(10, 120, 2)))
    table = pd.DataFrame(rows, columns=["image_id", "category_id", "x1", "y1", "w", "h"]).astype({"image_id": int, "category_id": int})
    table["x2"], table["y2"] = table.x1 + table.pop("w"), table.y1 + table.pop("h")
    scores = rng.random(len(table))
    table["score"] = scores.round(1) if ties else scores
    table["query"] = np.arange(len(table))
    truth = {
        "images": [{"id": image * 10 + 5, "width": 640, "height": 640} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": category, "name": f"class {category}"} for category in category_ids],
    }
    return truth, table
