"""Compares hotcoco with pycocotools on the COCO AP of 200,000 detections on 2,000 generated images."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness import Figure, interleaved, median_ratio
from workbench.analysis.detection.ap import APResult, coco_ap

IMAGES = 2_000
DETECTIONS = 100  # per image
CATEGORIES = 80
SIZE = 640  # pixels
REPEATS = 3  # pycocotools takes half a minute


def generated(
    seed: int = 0, images: int = IMAGES, detections: int = DETECTIONS, categories: int = CATEGORIES
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns COCO ground truth with 1 to 14 targets per image, and detections of which about a third lie near a target."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 15, images)
    image = np.repeat(np.arange(images), counts)
    category = rng.integers(1, categories + 1, len(image))
    sizes = np.exp(rng.uniform(np.log(10), np.log(300), (len(image), 2)))
    boxes = np.concatenate([rng.uniform(0, SIZE - sizes), sizes], axis=1)
    annotations = [
        {"id": n, "image_id": int(i), "category_id": int(c), "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0}
        for n, (i, c, box) in enumerate(zip(image, category, boxes, strict=True), start=1)
    ]
    truth = {
        "images": [{"id": n, "width": SIZE, "height": SIZE} for n in range(images)],
        "annotations": annotations,
        "categories": [{"id": n, "name": f"class {n}"} for n in range(1, categories + 1)],
    }
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    seen = np.repeat(np.arange(images), detections)
    source = first[seen] + rng.integers(0, counts[seen])  # a target of the same image
    near = rng.random(len(seen)) < 0.33
    x, y, width, height = boxes[source].T * np.where(near, rng.normal(1, 0.08, (4, len(seen))), rng.uniform(0.3, 3, (4, len(seen))))
    right_class = near & (rng.random(len(seen)) < 0.8)
    table = {
        "image_id": seen,
        "category_id": np.where(right_class, category[source], rng.integers(1, categories + 1, len(seen))),
        "score": np.where(right_class, rng.beta(4, 3, len(seen)), rng.beta(2, 6, len(seen))),
        "x1": x,
        "y1": y,
        "x2": x + width,
        "y2": y + height,
    }
    return truth, pd.DataFrame(table)


def figures() -> Iterator[Figure]:
    """Yields the times of both, their ratio, and the largest difference between the twelve COCO numbers."""
    truth, detections = generated()
    results: dict[str, APResult] = {}

    def fast() -> None:
        results["hotcoco"] = coco_ap(truth, detections, "hotcoco")

    def oracle() -> None:
        results["pycocotools"] = coco_ap(truth, detections, "pycocotools")

    seconds = interleaved({"hotcoco": fast, "pycocotools": oracle}, REPEATS, warmup=0)
    for name, values in seconds.items():
        yield Figure(f"AP of {len(detections)} detections on {IMAGES} images with {name}", float(np.median(values)), "s", repeats=REPEATS)
    ratio = median_ratio(seconds["pycocotools"], seconds["hotcoco"])
    yield Figure("AP: pycocotools / hotcoco", ratio.value, "x", ">= 50", (ratio.low, ratio.high), REPEATS)
    apart = difference(results["hotcoco"], results["pycocotools"])
    yield Figure("AP: greatest difference of the twelve COCO numbers", apart, "AP", "<= 1e-6")


def difference(one: APResult, other: APResult) -> float:
    """Returns the largest absolute difference between the twelve COCO numbers, 0..1; NaN if one side lacks a number."""
    names = [field.name for field in dataclasses.fields(APResult) if field.name != "per_class"]
    return float(np.max([abs(getattr(one, name) - getattr(other, name)) for name in names]))
