"""Random scenes as KITTI describes them, without image files."""

import numpy as np
import pandas as pd

from workbench.datasets.base import Dataset, Record
from workbench.datasets.kitti import CLASSES

Row = tuple[str, float, int, tuple[float, ...]]  # class, truncation, occlusion, box
SEEN = {"Car": 0.35, "Van": 0.1, "Pedestrian": 0.2, "Person_sitting": 0.05, "Cyclist": 0.15, "Truck": 0.05, "DontCare": 0.1}


def kitti_dataset(records: list[Record]) -> Dataset:
    """A dataset of KITTI's eight classes; its images are never looked at."""
    return Dataset("k", "val", CLASSES, range(1, 9), records, [])


def record(image_id: int, rows: list[Row]) -> Record:
    """An image of targets."""
    names, cut, hidden, boxes = zip(*rows, strict=True) if rows else ((), (), (), ())
    ignore = np.array([name == "DontCare" for name in names], bool)
    labels = np.array([-1 if name == "DontCare" else CLASSES.index(name) for name in names], np.int64)
    corners = np.array(boxes, float).reshape(-1, 4)
    attributes = {"truncation": np.array(cut, float), "occlusion": np.array(hidden, float)}
    return Record(
        image_id,
        f"{image_id:06d}.png",
        1242,
        375,
        corners,
        labels,
        np.zeros(len(names), bool),
        ignore,
        np.arange(1, len(names) + 1),
        np.ones(len(names)),
        attributes,
    )


def random_kitti(seed: int, images: int = 8, most: int = 7) -> tuple[Dataset, pd.DataFrame]:
    """Targets of all classes, heights, occlusions and truncations, regions, and detections that hit, miss, repeat and are too low."""
    rng = np.random.default_rng(seed)
    records, rows = [], []
    for image in range(images):
        targets = []
        for _ in range(int(rng.integers(0, most + 1))):
            name = str(rng.choice(list(SEEN), p=list(SEEN.values())))
            height, width = rng.uniform(15, 120), rng.uniform(20, 150)
            x, y = rng.uniform(0, 900), rng.uniform(0, 200)
            box = (x, y, x + width, y + height)
            targets.append((name, float(rng.choice([0, 0, 0.1, 0.25, 0.4, 0.8])), int(rng.choice([0, 0, 0, 1, 2, 3])), box))
            for _ in range(int(rng.integers(0, 4))):
                shift = rng.normal(0, 0.06, 4) * (width, height, width, height)
                seen = name if name != "DontCare" and rng.random() < 0.8 else str(rng.choice(["Car", "Pedestrian", "Cyclist"]))
                rows.append((image, CLASSES.index(seen) + 1, *(np.array(box) + shift)))
        for _ in range(int(rng.integers(0, 3))):
            x, y, width, height = rng.uniform(0, 900), rng.uniform(0, 200), *rng.uniform(15, 120, 2)
            rows.append((image, int(rng.choice([1, 4, 6])), x, y, x + width, y + height))
        records.append(record(image, targets))
    table = pd.DataFrame(rows, columns=["image_id", "category_id", "x1", "y1", "x2", "y2"]).assign(query=range(len(rows)))
    return kitti_dataset(records), table.assign(score=rng.permutation(len(rows)) / len(rows))
